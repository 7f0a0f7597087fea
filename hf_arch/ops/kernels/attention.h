/* Attention softmax(c Q K^T) V and its gradient with products of bf16 and all else in fp32, in blocks that stay in the cache:
   no matrix of all pairs of tokens is kept. Queries, keys and values are fp32 or bf16; they are rounded to bf16.

   Forward, over queries [SIDE] and keys [COLUMNS]: the maximum m and the sum of a row are followed from block to block.
   Backward, over keys [BLOCK] and queries [BLOCK], with D = sum_v O dO:
       P = exp(c Q K^T - m) / sum    dV = P^T dO    dS = P (dO V^T - D)    dQ = c dS K    dK = c dS^T Q
   computed with keys as rows. Each thread takes heads of its own, in blocks of queries in the forward pass. */

#include "pairs.h"

typedef struct {
    /* `wide_*`: whether a tensor is fp32. Strides in numbers. */
    int64_t batch, heads, groups, queries, keys, width, value_width, threads, room;
    int64_t wide_q, wide_k, wide_v, wide_grad, wide_dk, wide_dv;
    int64_t q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token;
    int64_t mask_batch, mask_head, mask_row, grad_batch, grad_head, grad_token;
    int64_t dq_batch, dq_head, dq_token, dk_batch, dk_head, dk_token, dv_batch, dv_head, dv_token;
    const void *q, *k, *v;
    const uint8_t *mask; /* or NULL: query t sees the keys up to t */
    uint16_t *out;       /* [batch, queries, heads, value_width] */
    float *rows;         /* [batch, heads, 2, queries]: m in powers of two, and 1 / sum; both 0 where a query sees nothing */
    const void *grad;
    void *dq, *dk, *dv;
    char *scratch; /* `room` bytes a thread */
} Attention;

#ifndef HAS_PAIRS
int attention_products(void) { return 0; }
void attention_room(Attention *a, int64_t backward) {}
void attention(const Attention *a, float scale) {}
void attention_backward(const Attention *a, float scale) {}
#else

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

/* `count` rows of `width` numbers as bf16 with zeros around them, by rows and (`pairs` given) in pairs. */
static void pack(Rows x, int64_t count, int64_t width, uint16_t *rows, uint32_t *pairs) {
    const int64_t room = padded(width);
    for (int64_t t = 0; t < padded(count); t += 2)
        for (int64_t c = 0; c < room; c += LANES) {
            half_lanes y[2];
            for (int i = 0; i < 2; i++) {
                y[i] = narrowed(t + i < count && c < width ? load_row(x, t + i, c, width - c) : all(0));
                if (rows) store_halves(rows + (t + i) * room + c, y[i]);
            }
            if (pairs) store_pairs(pairs + t / 2 * room + c, y[0], y[1]);
        }
}

static inline int64_t whole_blocks(int64_t count, int64_t block) { return (count + block - 1) / block * block; }

/* Rows of `count` pairs of neighbours, to columns of blocks of so many rows. Of rows of bf16 this makes pairs, of pairs rows. */
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

/* 2: on tiles; 1: of pairs; 0: there are none. */
int attention_products(void) { return known_products(); }

/* Sets `room`, for that pass. */
void attention_room(Attention *a, int64_t backward) {
    const int64_t width = padded(a->width), values = padded(a->value_width), block = backward ? BLOCK : COLUMNS;
    const int64_t queries = whole_blocks(a->queries, block), keys = whole_blocks(a->keys, block);
    if (backward)
        a->room = 2 * keys * (3 * width + values) + queries * (10 * width + 6 * values + 12) + BLOCK * (4 * (width + values) + 14 * BLOCK) + 1024;
    else
        a->room = 2 * keys * (2 * width + values) + SIDE * (2 * width + 4 * values + 6 * COLUMNS) + 512;
}

static inline uint64_t first_bits(int64_t count) { return count >= BLOCK ? ~0ull : count <= 0 ? 0 : (1ull << count) - 1; }

/* Which of BLOCK keys from s on the queries from t on see, a word each: 0 where there is nothing, 2 where all is seen. */
static int look(const Attention *a, int64_t b, int64_t h, int64_t s, int64_t t, int64_t count, uint64_t *words) {
    const uint64_t exist = first_bits(a->keys - s);
    const uint8_t *mask = a->mask ? a->mask + b * a->mask_batch + h * a->mask_head + t * a->mask_row + s : NULL;
    uint64_t some = 0, every = ~0ull;
    for (int64_t i = 0; i < count; i++) {
        words[i] = exist & first_bits(t + i + 1 - s);
        if (mask) {
            const __m512i row = _mm512_maskz_loadu_epi8(exist, mask + i * a->mask_row);
            words[i] = _mm512_test_epi8_mask(row, row);
        }
        some |= words[i], every &= words[i];
    }
    return some == 0 ? 0 : every == ~0ull ? 2 : 1;
}

typedef struct {
    float most, sum;
} Row;

/* Scores of a row to probabilities under its maximum so far. What it had is multiplied by the result. */
static inline float row_of(const int whole, const float *scores, int64_t vectors, lanes scale, const uint64_t *words, Row *row, uint16_t *to) {
    __mmask16 visible[COLUMNS / LANES];
    lanes x[COLUMNS / LANES], most = all(row->most);
    for (int64_t i = 0; i < vectors; i++) {
        x[i] = load_all(scores + i * LANES) * scale;
        visible[i] = words[i * LANES / BLOCK * SIDE] >> i * LANES % BLOCK;
        if (!whole) x[i] = _mm512_mask_blend_ps(visible[i], all(-INFINITE), x[i]);
        most = MAX(most, x[i]);
    }
    const float before = row->most;
    row->most = _mm512_reduce_max_ps(most);
    const lanes shift = all(row->most == -INFINITE ? 0 : row->most);
    lanes sum = all(0);
    for (int64_t i = 0; i < vectors; i++) {
        lanes p = power_of_two(x[i] - shift);
        if (!whole) p = _mm512_maskz_mov_ps(visible[i], p);
        sum += p;
        store_halves(to + i * LANES, narrowed(p));
    }
    const float left = before == row->most ? 1 : power_of_two(all(before) - shift)[0];
    row->sum = row->sum * left + _mm512_reduce_add_ps(sum);
    return left;
}

static void attend(const Attention *a, float scale, int64_t b, int64_t h, int64_t from, int64_t to, char *scratch) {
    const int64_t width = padded(a->width), values = padded(a->value_width), limit = !a->mask ? least(a->keys, to) : a->keys;
    const int64_t keys = padded(limit);
    uint16_t *key_rows = take(&scratch, 2 * keys * width), *q = take(&scratch, 2 * SIDE * width), *p = take(&scratch, 2 * SIDE * COLUMNS);
    uint32_t *key_pairs = take(&scratch, 2 * whole_blocks(keys, COLUMNS) * width), *value_pairs = take(&scratch, 2 * keys * values);
    float *scores = take(&scratch, 4 * SIDE * COLUMNS), *sums = take(&scratch, 4 * SIDE * values);
    const Rows query = head_of(a->q, a->q_batch, a->q_head, a->q_token, a->wide_q, b, h);
    pack(head_of(a->k, a->k_batch, a->k_head, a->k_token, a->wide_k, b, h / a->groups), limit, a->width, key_rows, NULL);
    pack(head_of(a->v, a->v_batch, a->v_head, a->v_token, a->wide_v, b, h / a->groups), limit, a->value_width, NULL, value_pairs);
    turn(key_rows, keys, width / 2, COLUMNS, key_pairs);
    for (int64_t t = from; t < to; t += SIDE) {
        const int64_t rows = least(SIDE, to - t), end = !a->mask ? least(limit, t + rows) : limit;
        Row row[SIDE];
        for (int r = 0; r < SIDE; r++) row[r] = (Row){-INFINITE, 0};
        memset(sums, 0, 4 * SIDE * values);
        pack((Rows){(const char *)query.first + t * query.token * (query.wide ? 4 : 2), query.token, query.wide}, rows, a->width, q, NULL);
        for (int64_t s = 0; s < end; s += COLUMNS) {
            const int64_t columns = padded(least(COLUMNS, end - s)), vectors = columns / LANES;
            uint64_t words[COLUMNS / BLOCK][SIDE];
            const int first = look(a, b, h, s, t, rows, words[0]), last = columns > BLOCK ? look(a, b, h, s + BLOCK, t, rows, words[1]) : first;
            if (!first && !last) continue;
            multiply(q, width, key_pairs + s * width / 2, COLUMNS, scores, COLUMNS, SIDE, columns, width, 0);
            for (int64_t r = 0; r < rows; r++) {
                const float left = first == 2 && last == 2 ? row_of(1, scores + r * COLUMNS, vectors, all(scale), words[0] + r, row + r, p + r * COLUMNS)
                                                           : row_of(0, scores + r * COLUMNS, vectors, all(scale), words[0] + r, row + r, p + r * COLUMNS);
                if (left != 1)
                    for (int64_t c = 0; c < values; c += LANES) store_all(sums + r * values + c, load_all(sums + r * values + c) * left);
            }
            for (int64_t r = rows; r < SIDE; r++) memset(p + r * COLUMNS, 0, 2 * COLUMNS);
            multiply(p, COLUMNS, value_pairs + s / 2 * values, values, sums, values, SIDE, values, columns, 1);
        }
        for (int64_t r = 0; r < rows; r++) {
            const float share = row[r].most == -INFINITE ? 0 : 1 / row[r].sum;
            uint16_t *out = a->out + ((b * a->queries + t + r) * a->heads + h) * a->value_width;
            EACH_VECTOR(a->value_width, store_bf16(out + c, load_all(sums + r * values + c) * share, count))
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

/* Of keys from s and queries from t on: the scores to P, and dO V^T to dS, both as bf16. */
static inline void slopes(const int whole, const uint64_t *words, lanes scale, int64_t rows, int64_t columns, const float *scores,
                          const float *given, const float *most, int64_t queries, uint16_t *p, uint16_t *ds, uint32_t *pairs) {
    const float *share = most + queries, *delta = share + queries;
    for (int64_t r = 0; r < rows; r += 2)
        for (int64_t c = 0; c < columns; c += LANES) {
            half_lanes slope[2];
            for (int i = 0; i < 2; i++) {
                const int64_t at = (r + i) * BLOCK + c;
                lanes x = power_of_two(load_all(scores + at) * scale - load_all(most + c)) * load_all(share + c);
                lanes y = x * (load_all(given + at) - load_all(delta + c));
                if (!whole) {
                    const __m512i key = _mm512_set1_epi64(1ull << (r + i));
                    const __mmask8 low = _mm512_test_epi64_mask(_mm512_loadu_si512(words + c), key);
                    const __mmask16 visible = low | _mm512_test_epi64_mask(_mm512_loadu_si512(words + c + 8), key) << 8;
                    x = _mm512_maskz_mov_ps(visible, x), y = _mm512_maskz_mov_ps(visible, y);
                }
                slope[i] = narrowed(y);
                store_halves(p + at, narrowed(x)), store_halves(ds + at, slope[i]);
            }
            store_pairs(pairs + r / 2 * BLOCK + c, slope[0], slope[1]);
        }
}

static void differentiate(const Attention *a, float scale, int64_t b, int64_t h, char *scratch) {
    const int64_t width = padded(a->width), values = padded(a->value_width);
    const int64_t queries = whole_blocks(a->queries, BLOCK), keys = whole_blocks(a->keys, BLOCK);
    uint16_t *k = take(&scratch, 2 * keys * width), *v = take(&scratch, 2 * keys * values), *k_turned = take(&scratch, 2 * keys * width);
    uint32_t *k_pairs = take(&scratch, 2 * keys * width);
    uint32_t *q_pairs = take(&scratch, 2 * queries * width), *q_turned = take(&scratch, 2 * queries * width);
    uint32_t *g_pairs = take(&scratch, 2 * queries * values), *g_turned = take(&scratch, 2 * queries * values);
    float *dq = take(&scratch, 4 * queries * width), *most = take(&scratch, 4 * 3 * queries);
    uint16_t *rows = take(&scratch, 2 * queries * (width > values ? width : values));
    float *dk = take(&scratch, 4 * BLOCK * width), *dv = take(&scratch, 4 * BLOCK * values);
    float *scores = take(&scratch, 4 * BLOCK * BLOCK), *given = take(&scratch, 4 * BLOCK * BLOCK);
    uint16_t *p = take(&scratch, 2 * BLOCK * BLOCK), *ds = take(&scratch, 2 * BLOCK * BLOCK);
    uint32_t *ds_pairs = take(&scratch, 2 * BLOCK * BLOCK);
    const Rows grad = head_of(a->grad, a->grad_batch, a->grad_head, a->grad_token, a->wide_grad, b, h);

    pack(head_of(a->k, a->k_batch, a->k_head, a->k_token, a->wide_k, b, h / a->groups), a->keys, a->width, k, k_pairs);
    turn(k_pairs, padded(a->keys) / 2, width, BLOCK / 2, k_turned);
    pack(head_of(a->v, a->v_batch, a->v_head, a->v_token, a->wide_v, b, h / a->groups), a->keys, a->value_width, v, NULL);
    pack(head_of(a->q, a->q_batch, a->q_head, a->q_token, a->wide_q, b, h), a->queries, a->width, rows, q_pairs);
    turn(rows, padded(a->queries), width / 2, BLOCK, q_turned);
    pack(grad, a->queries, a->value_width, rows, g_pairs);
    turn(rows, padded(a->queries), values / 2, BLOCK, g_turned);
    memset(most, 0, 4 * 3 * queries);
    memcpy(most, a->rows + (b * a->heads + h) * 2 * a->queries, 4 * a->queries);
    memcpy(most + queries, a->rows + ((b * a->heads + h) * 2 + 1) * a->queries, 4 * a->queries);
    for (int64_t t = 0; t < a->queries; t++) {
        const uint16_t *out = a->out + ((b * a->queries + t) * a->heads + h) * a->value_width;
        lanes sum = all(0);
        EACH_VECTOR(a->value_width, sum += load_bf16(out + c, count) * load_bf16(rows + t * values + c, count))
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
            multiply(k + s * width, width, q_turned + t * width / 2, BLOCK, scores, BLOCK, count, columns, width, 0);
            multiply(v + s * values, values, g_turned + t * values / 2, BLOCK, given, BLOCK, count, columns, values, 0);
            if (seen == 2)
                slopes(1, words, all(scale * LOG2_E), count, columns, scores, given, most + t, queries, p, ds, ds_pairs);
            else
                slopes(0, words, all(scale * LOG2_E), count, columns, scores, given, most + t, queries, p, ds, ds_pairs);
            multiply(p, BLOCK, g_pairs + t / 2 * values, values, dv, values, count, values, columns, 1);
            multiply(ds, BLOCK, q_pairs + t / 2 * width, width, dk, width, count, width, columns, 1);
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
#endif
