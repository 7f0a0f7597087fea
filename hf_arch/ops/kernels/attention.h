/* Attention softmax(c Q K^T) V and its gradient in blocks that stay in the cache: no matrix of all pairs of tokens is kept. Softmax
   and sums are fp32; the source that includes this says what is multiplied.

   Forward, over queries [QUERIES] and keys [COLUMNS]: the maximum m and the sum of a row are followed from block to block.
   Backward, over keys [BLOCK] and queries [BLOCK], with D = sum_v O dO:
       P = exp(c Q K^T - m) / sum    dV = P^T dO    dS = P (dO V^T - D)    dQ = c dS K    dK = c dS^T Q
   computed with keys as rows. Each thread takes heads of its own, in blocks of queries in the forward pass.

   Left, Right: numbers of matrices on the left of products, by rows, and on the right, of which each holds DEPTH numbers of a
   column. SIDE: rows, columns and depth are multiples of it. narrowed, store_left, load_left, store_right, multiply as in pairs.h;
   ONE_FORM where Left and Right are the same. */

typedef struct {
    /* `wide_*`: whether a tensor is fp32. Strides in numbers. */
    int64_t batch, heads, groups, queries, keys, width, value_width, threads, room;
    int64_t wide_q, wide_k, wide_v, wide_out, wide_grad, wide_dk, wide_dv;
    int64_t q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token;
    int64_t mask_batch, mask_head, mask_row, grad_batch, grad_head, grad_token;
    int64_t dq_batch, dq_head, dq_token, dk_batch, dk_head, dk_token, dv_batch, dv_head, dv_token;
    const void *q, *k, *v;
    const uint8_t *mask; /* or NULL: query t sees the keys up to t */
    void *out;           /* [batch, queries, heads, value_width] */
    float *rows;         /* [batch, heads, 2, queries]: m in powers of two, and 1 / sum; both 0 where a query sees nothing */
    const void *grad;
    void *dq, *dk, *dv;
    char *scratch; /* `room` bytes a thread */
} Attention;

#define QUERIES 32
#define COLUMNS 128
#define BLOCK 64
#define INFINITE __builtin_inff()
#define CHUNK 512 /* queries of a task of the forward pass */

typedef struct {
    const void *first;
    int64_t token, wide;
} Rows;

static Rows head_of(const void *x, int64_t batch, int64_t head, int64_t token, int64_t wide, int64_t b, int64_t h) {
    return (Rows){(const char *)x + (b * batch + h * head) * (wide ? 4 : 2), token, wide};
}

static inline lanes load_row(Rows x, int64_t t, int64_t c, int64_t count) {
    if (x.wide) return load((const float *)x.first + t * x.token + c, count);
    return load_bf16((const uint16_t *)x.first + t * x.token + c, count);
}

static inline void store_row(Rows x, int64_t t, int64_t c, int64_t count, lanes y) {
    if (x.wide)
        store((float *)x.first + t * x.token + c, y, count);
    else
        store_bf16((uint16_t *)x.first + t * x.token + c, y, count);
}

static inline int64_t padded(int64_t count) { return (count + SIDE - 1) / SIDE * SIDE; }

/* `count` rows of `width` numbers with zeros around them, for the left and, where given, for the right. */
static void pack(Rows x, int64_t count, int64_t width, Left *rows, Right *pairs) {
    const int64_t room = padded(width);
    for (int64_t t = 0; t < padded(count); t += 2)
        for (int64_t c = 0; c < room; c += LANES) {
            Narrow y[2];
            for (int i = 0; i < 2; i++) {
                y[i] = narrowed(t + i < count && c < width ? load_row(x, t + i, c, width - c) : all(0));
                if (rows) store_left(rows + (t + i) * room + c, y[i]);
            }
            if (pairs) store_right(pairs + t / DEPTH * room + c, y[0], y[1]);
        }
}

static inline int64_t whole_blocks(int64_t count, int64_t block) { return (count + block - 1) / block * block; }

/* For the right, and on the way for the left: in `rows`, or with ONE_FORM in the same place. */
static Left *pack_both(Rows x, int64_t count, int64_t width, Left *rows, Right *pairs) {
    if (ONE_FORM) rows = (Left *)pairs;
    pack(x, count, width, rows, ONE_FORM ? NULL : pairs);
    return rows;
}

/* Rows of `count` numbers of 4 bytes, to columns of blocks of so many rows. Of a matrix for the left this makes one for the right,
   and the other way round. */
static void turn(const void *from, int64_t rows, int64_t count, int64_t block, void *to) {
    for (int64_t r = 0; r < rows; r += block)
        transposed((const float *)from + r * count, count, least(block, rows - r), count, (float *)to + r * count, block);
}

/* The part of the scratch memory that follows. */
static inline void *take(char **scratch, int64_t bytes) {
    void *part = *scratch;
    *scratch += (bytes + 63) / 64 * 64;
    return part;
}

/* How fast its products are, 0 where there are none. */
int attention_products(void) { return known_products(); }

/* Sets `room`, for that pass. */
void attention_room(Attention *a, int64_t backward) {
    const int64_t width = padded(a->width), values = padded(a->value_width), block = backward ? BLOCK : COLUMNS;
    const int64_t queries = whole_blocks(a->queries, block), keys = whole_blocks(a->keys, block), size = sizeof(Left);
    if (backward)
        a->room = size * (keys * (3 * width + values) + queries * (3 * width + 3 * values)) + 4 * queries * (width + 3) + 4 * BLOCK * (width + values) +
                  (8 + 4 * size) * BLOCK * BLOCK + 1024;
    else
        a->room = size * (keys * (2 * width + values) + QUERIES * (width + COLUMNS)) + 4 * QUERIES * (COLUMNS + values) + 512;
}

static inline uint64_t first_bits(int64_t count) { return count >= BLOCK ? ~0ull : count <= 0 ? 0 : (1ull << count) - 1; }

/* The lowest bits of so many bytes of 0 or 1: the product gathers those of eight in its upper byte. */
static inline uint64_t bits_of(const uint8_t *from, int64_t count) {
    uint64_t bits = 0, bytes = 0;
    for (int64_t c = 0; c < count; c += 8) {
        memcpy(&bytes, from + c, c + 8 <= count ? 8 : count - c);
        if (c + 8 > count) bytes &= first_bits(8 * (count - c));
        bits |= (bytes * 0x0102040810204080ull >> 56) << c;
    }
    return bits;
}

#if LANES == 16
#define BITS 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768
#elif LANES == 8
#define BITS 1, 2, 4, 8, 16, 32, 64, 128
#else
#define BITS 1, 2, 4, 8
#endif

/* The lanes whose bit is set, from the lowest on. */
static inline integers shown(uint64_t bits) { return (((int32_t)bits - (integers){0}) & (integers){BITS}) != 0; }

/* Rows of bits to columns. */
static void turn_bits(uint64_t *x) {
    uint64_t low = 0xffffffffull;
    for (int size = 32; size; size /= 2, low ^= low << size)
        for (int i = 0; i < BLOCK; i = (i + size + 1) & ~size) {
            const uint64_t changed = (x[i] >> size ^ x[i + size]) & low;
            x[i + size] ^= changed, x[i] ^= changed << size;
        }
}

/* Which of BLOCK keys from s on the queries from t on see, a word each: 0 where there is nothing, 2 where all is seen. */
static int look(const Attention *a, int64_t b, int64_t h, int64_t s, int64_t t, int64_t count, uint64_t *words) {
    const uint64_t exist = first_bits(a->keys - s);
    const uint8_t *mask = a->mask ? a->mask + b * a->mask_batch + h * a->mask_head + t * a->mask_row + s : NULL;
    uint64_t some = 0, every = ~0ull;
    for (int64_t i = 0; i < count; i++) {
        words[i] = exist & (mask ? bits_of(mask + i * a->mask_row, least(BLOCK, a->keys - s)) : first_bits(t + i + 1 - s));
        some |= words[i], every &= words[i];
    }
    return some == 0 ? 0 : every == ~0ull ? 2 : 1;
}

typedef struct {
    float most, sum;
} Row;

static inline float largest(lanes x) {
    for (int left = LANES; left > 1; left /= 2) {
        const lanes even = SHUFFLE(x, x, EVEN), odd = SHUFFLE(x, x, ODD);
        x = MAX(even, odd);
    }
    return x[0];
}

/* Scores of a row to probabilities under its maximum so far. What it had is multiplied by the result. */
INLINE float row_of(const int whole, const float *scores, int64_t vectors, lanes scale, const uint64_t *words, Row *row, Left *to) {
    lanes x[COLUMNS / LANES], most = all(row->most);
    for (int64_t i = 0; i < vectors; i++) {
        x[i] = load_all(scores + i * LANES) * scale;
        if (!whole) x[i] = where(shown(words[i * LANES / BLOCK * QUERIES] >> i * LANES % BLOCK), x[i], all(-INFINITE));
        most = MAX(most, x[i]);
    }
    const float before = row->most;
    row->most = largest(most);
    const lanes shift = all(row->most == -INFINITE ? 0 : row->most);
    lanes sum = all(0);
    for (int64_t i = 0; i < vectors; i++) {
        lanes p = power_of_two(x[i] - shift);
        if (!whole) p = where(shown(words[i * LANES / BLOCK * QUERIES] >> i * LANES % BLOCK), p, all(0));
        sum += p;
        store_left(to + i * LANES, narrowed(p));
    }
    const float left = before == row->most ? 1 : power_of_two(all(before) - shift)[0];
    row->sum = row->sum * left + total(sum);
    return left;
}

static void attend(const Attention *a, float scale, int64_t b, int64_t h, int64_t from, int64_t to, char *scratch) {
    const int64_t width = padded(a->width), values = padded(a->value_width), limit = !a->mask ? least(a->keys, to) : a->keys;
    const int64_t keys = padded(limit);
    Left *key_rows = take(&scratch, sizeof(Left) * keys * width), *q = take(&scratch, sizeof(Left) * QUERIES * width);
    Left *p = take(&scratch, sizeof(Left) * QUERIES * COLUMNS);
    Right *key_pairs = take(&scratch, sizeof(Left) * whole_blocks(keys, COLUMNS) * width), *value_pairs = take(&scratch, sizeof(Left) * keys * values);
    float *scores = take(&scratch, 4 * QUERIES * COLUMNS), *sums = take(&scratch, 4 * QUERIES * values);
    const Rows out = head_of(a->out, a->queries * a->heads * a->value_width, a->value_width, a->heads * a->value_width, a->wide_out, b, h);
    const Rows query = head_of(a->q, a->q_batch, a->q_head, a->q_token, a->wide_q, b, h);
    pack(head_of(a->k, a->k_batch, a->k_head, a->k_token, a->wide_k, b, h / a->groups), limit, a->width, key_rows, NULL);
    pack(head_of(a->v, a->v_batch, a->v_head, a->v_token, a->wide_v, b, h / a->groups), limit, a->value_width, ONE_FORM ? (Left *)value_pairs : NULL, ONE_FORM ? NULL : value_pairs);
    turn(key_rows, keys, width / DEPTH, COLUMNS, key_pairs);
    for (int64_t t = from; t < to; t += QUERIES) {
        const int64_t rows = least(QUERIES, to - t), end = !a->mask ? least(limit, t + rows) : limit;
        Row row[QUERIES];
        for (int r = 0; r < QUERIES; r++) row[r] = (Row){-INFINITE, 0};
        memset(sums, 0, 4 * QUERIES * values);
        pack((Rows){(const char *)query.first + t * query.token * (query.wide ? 4 : 2), query.token, query.wide}, rows, a->width, q, NULL);
        for (int64_t s = 0; s < end; s += COLUMNS) {
            const int64_t columns = padded(least(COLUMNS, end - s)), vectors = columns / LANES;
            uint64_t words[COLUMNS / BLOCK][QUERIES];
            const int first = look(a, b, h, s, t, rows, words[0]), last = columns > BLOCK ? look(a, b, h, s + BLOCK, t, rows, words[1]) : first;
            if (!first && !last) continue;
            multiply(q, width, key_pairs + s * width / DEPTH, COLUMNS, scores, COLUMNS, padded(rows), columns, width, 0);
            for (int64_t r = 0; r < rows; r++) {
                const float left = first == 2 && last == 2 ? row_of(1, scores + r * COLUMNS, vectors, all(scale), words[0] + r, row + r, p + r * COLUMNS)
                                                           : row_of(0, scores + r * COLUMNS, vectors, all(scale), words[0] + r, row + r, p + r * COLUMNS);
                if (left != 1)
                    for (int64_t c = 0; c < values; c += LANES) store_all(sums + r * values + c, load_all(sums + r * values + c) * left);
            }
            for (int64_t r = rows; r < padded(rows); r++) memset(p + r * COLUMNS, 0, sizeof(Left) * COLUMNS);
            multiply(p, COLUMNS, value_pairs + s / DEPTH * values, values, sums, values, padded(rows), values, columns, 1);
        }
        for (int64_t r = 0; r < rows; r++) {
            const float share = row[r].most == -INFINITE ? 0 : 1 / row[r].sum;
            EACH_VECTOR(a->value_width, store_row(out, t + r, c, count, load_all(sums + r * values + c) * share))
            if (!a->rows) continue;
            float *kept = a->rows + (b * a->heads + h) * 2 * a->queries + t + r;
            kept[0] = row[r].most == -INFINITE ? 0 : row[r].most;
            kept[a->queries] = share;
        }
    }
}

void attention(const Attention *a, float scale) {
    const int64_t chunks = (a->queries + CHUNK - 1) / CHUNK, tasks = a->batch * a->heads * chunks;
#pragma omp parallel for num_threads(a->threads) schedule(static)
    for (int64_t thread = 0; thread < a->threads; thread++) {
        begin_products();
        for (int64_t task = thread; task < tasks; task += a->threads) {
            const int64_t head = task / chunks, from = task % chunks * CHUNK;
            attend(a, scale * LOG2_E, head / a->heads, head % a->heads, from, least(a->queries, from + CHUNK), a->scratch + thread * a->room);
        }
        end_products();
    }
}

/* The scores to P and dO V^T to dS. */
INLINE void slopes(const int whole, const uint64_t *words, lanes scale, int64_t rows, int64_t columns, const float *scores, const float *given,
                   const float *most, int64_t queries, Left *p, Left *ds, Right *pairs) {
    const float *share = most + queries, *delta = share + queries;
    for (int64_t r = 0; r < rows; r += 2)
        for (int64_t c = 0; c < columns; c += LANES) {
            Narrow slope[2];
            for (int i = 0; i < 2; i++) {
                const int64_t at = (r + i) * BLOCK + c;
                lanes x = power_of_two(load_all(scores + at) * scale - load_all(most + c)) * load_all(share + c);
                lanes y = x * (load_all(given + at) - load_all(delta + c));
                if (!whole) {
                    const integers visible = shown(words[r + i] >> c);
                    x = where(visible, x, all(0)), y = where(visible, y, all(0));
                }
                slope[i] = narrowed(y);
                store_left(p + at, narrowed(x)), store_left(ds + at, slope[i]);
            }
            if (!ONE_FORM) store_right(pairs + r / DEPTH * BLOCK + c, slope[0], slope[1]);
        }
}

static void differentiate(const Attention *a, float scale, int64_t b, int64_t h, char *scratch) {
    const int64_t width = padded(a->width), values = padded(a->value_width);
    const int64_t queries = whole_blocks(a->queries, BLOCK), keys = whole_blocks(a->keys, BLOCK);
    Left *k = take(&scratch, sizeof(Left) * keys * width), *v = take(&scratch, sizeof(Left) * keys * values);
    Left *k_turned = take(&scratch, sizeof(Left) * keys * width);
    Right *k_pairs = take(&scratch, sizeof(Left) * keys * width), *q_pairs = take(&scratch, sizeof(Left) * queries * width);
    Right *q_turned = take(&scratch, sizeof(Left) * queries * width), *g_pairs = take(&scratch, sizeof(Left) * queries * values);
    Right *g_turned = take(&scratch, sizeof(Left) * queries * values);
    float *dq = take(&scratch, 4 * queries * width), *most = take(&scratch, 4 * 3 * queries);
    Left *rows = take(&scratch, sizeof(Left) * queries * (width > values ? width : values));
    float *dk = take(&scratch, 4 * BLOCK * width), *dv = take(&scratch, 4 * BLOCK * values);
    float *scores = take(&scratch, 4 * BLOCK * BLOCK), *given = take(&scratch, 4 * BLOCK * BLOCK);
    Left *p = take(&scratch, sizeof(Left) * BLOCK * BLOCK), *ds = take(&scratch, sizeof(Left) * BLOCK * BLOCK);
    Right *ds_pairs = ONE_FORM ? (Right *)ds : take(&scratch, sizeof(Left) * BLOCK * BLOCK);
    const Rows out = head_of(a->out, a->queries * a->heads * a->value_width, a->value_width, a->heads * a->value_width, a->wide_out, b, h);
    const Rows grad = head_of(a->grad, a->grad_batch, a->grad_head, a->grad_token, a->wide_grad, b, h);

    k = pack_both(head_of(a->k, a->k_batch, a->k_head, a->k_token, a->wide_k, b, h / a->groups), a->keys, a->width, k, k_pairs);
    turn(k_pairs, padded(a->keys) / DEPTH, width, BLOCK / DEPTH, k_turned);
    pack(head_of(a->v, a->v_batch, a->v_head, a->v_token, a->wide_v, b, h / a->groups), a->keys, a->value_width, v, NULL);
    turn(pack_both(head_of(a->q, a->q_batch, a->q_head, a->q_token, a->wide_q, b, h), a->queries, a->width, rows, q_pairs), padded(a->queries), width / DEPTH, BLOCK, q_turned);
    rows = pack_both(grad, a->queries, a->value_width, rows, g_pairs);
    turn(rows, padded(a->queries), values / DEPTH, BLOCK, g_turned);
    memset(most, 0, 4 * 3 * queries);
    memcpy(most, a->rows + (b * a->heads + h) * 2 * a->queries, 4 * a->queries);
    memcpy(most + queries, a->rows + ((b * a->heads + h) * 2 + 1) * a->queries, 4 * a->queries);
    for (int64_t t = 0; t < a->queries; t++) {
        lanes sum = all(0);
        EACH_VECTOR(a->value_width, sum += load_row(out, t, c, count) * load_left(rows + t * values + c))
        most[2 * queries + t] = total(sum);
    }
    memset(dq, 0, 4 * queries * width);
    for (int64_t s = 0; s < a->keys; s += BLOCK) {
        const int64_t count = padded(least(BLOCK, a->keys - s));
        memset(dk, 0, 4 * BLOCK * width), memset(dv, 0, 4 * BLOCK * values);
        for (int64_t t = a->mask ? 0 : s; t < a->queries; t += BLOCK) {
            const int64_t columns = padded(least(BLOCK, a->queries - t));
            uint64_t words[BLOCK] = {0};
            const int seen = look(a, b, h, s, t, least(BLOCK, a->queries - t), words);
            if (!seen) continue;
            multiply(k + s * width, width, q_turned + t * width / DEPTH, BLOCK, scores, BLOCK, count, columns, width, 0);
            multiply(v + s * values, values, g_turned + t * values / DEPTH, BLOCK, given, BLOCK, count, columns, values, 0);
            if (seen != 2) turn_bits(words);
            if (seen == 2)
                slopes(1, words, all(scale * LOG2_E), count, columns, scores, given, most + t, queries, p, ds, ds_pairs);
            else
                slopes(0, words, all(scale * LOG2_E), count, columns, scores, given, most + t, queries, p, ds, ds_pairs);
            multiply(p, BLOCK, g_pairs + t / DEPTH * values, values, dv, values, count, values, columns, 1);
            multiply(ds, BLOCK, q_pairs + t / DEPTH * width, width, dk, width, count, width, columns, 1);
            multiply(k_turned + s * width, BLOCK, ds_pairs, BLOCK, dq + t * width, BLOCK, width, columns, count, 1);
        }
        const Rows to_k = head_of(a->dk, a->dk_batch, a->dk_head, a->dk_token, a->wide_dk, b, h);
        const Rows to_v = head_of(a->dv, a->dv_batch, a->dv_head, a->dv_token, a->wide_dv, b, h);
        for (int64_t r = 0; r < least(BLOCK, a->keys - s); r++) {
            EACH_VECTOR(a->width, store_row(to_k, s + r, c, count, load_all(dk + r * width + c) * scale))
            EACH_VECTOR(a->value_width, store_row(to_v, s + r, c, count, load_all(dv + r * values + c)))
        }
    }
    const Rows to_q = head_of(a->dq, a->dq_batch, a->dq_head, a->dq_token, a->wide_q, b, h);
    for (int64_t t = 0; t < a->queries; t += BLOCK) {
        const int64_t count = least(BLOCK, a->queries - t);
        transposed(dq + t * width, BLOCK, width, padded(count), dk, width);
        for (int64_t r = 0; r < count; r++) EACH_VECTOR(a->width, store_row(to_q, t + r, c, count, load_all(dk + r * width + c) * scale))
    }
}

void attention_backward(const Attention *a, float scale) {
    const int64_t tasks = a->batch * a->heads;
#pragma omp parallel for num_threads(a->threads) schedule(static)
    for (int64_t thread = 0; thread < a->threads; thread++) {
        begin_products();
        for (int64_t task = thread; task < tasks; task += a->threads)
            differentiate(a, scale, task / a->heads, task % a->heads, a->scratch + thread * a->room);
        end_products();
    }
}
