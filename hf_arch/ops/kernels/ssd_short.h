/* State space duality of short rows that no state enters or leaves: every token reads all tokens before it, and there are no
   states, whose updates and readings cost more up to four times their numbers. Equations as in hf_arch/ops/native_ssd.py.

   Rows of chunk after chunk make the lower triangle of a matrix of scores: those of the chunk from `start` on have
   start + CHUNK columns. Within the chunk's own columns weights are those of ssd_chunks.h, before them prefix_i reach_j, where
   reach_j are the decays from after token j to the chunk's start. */

#include "ssd_chunks.h"

typedef struct {
    Chunk k;
    int64_t tokens, apart; /* of all chunks; between turned rows, which else would meet in the first cache */
    float *ones, *B, *C, *turned, *scores, *weights, *u, *reach;
    Decays *decays; /* of each chunk, of one head */
} Row;

static inline int64_t rows_before(int64_t start) { return start * (start + CHUNK) / 2; }
static inline int64_t row_tokens(const Ssd *s) { return chunks_of(s) * CHUNK; }

static int64_t row_room(const Ssd *s) {
    const int64_t tokens = row_tokens(s), numbers = padded(s->numbers), width = padded(s->width);
    return task_room(s) + most(numbers, width) + 2 * tokens * numbers + numbers * (tokens + LANES) + rows_before(tokens) +
           tokens * (CHUNK + width + 1) + chunks_of(s) * (int64_t)(sizeof(Decays) / sizeof(float));
}

/* Returns what is left of the room. */
static float *row_of(const Ssd *s, int64_t b, int64_t task, float *room, Row *r) {
    float *at = task_of(s, b, task, room, &r->k);
    const Chunk *k = &r->k;
    const int64_t longest = most(k->numbers, k->width);
    r->tokens = row_tokens(s), r->apart = r->tokens + LANES;
    r->ones = at, r->B = at += longest, r->C = at += r->tokens * k->numbers, r->turned = at += r->tokens * k->numbers;
    r->scores = at += k->numbers * r->apart, r->weights = at += rows_before(r->tokens), r->u = at += CHUNK * r->tokens;
    r->reach = at += r->tokens * k->width, r->decays = (Decays *)(at += r->tokens);
    for (int64_t c = 0; c < longest; c++) r->ones[c] = 1;
    copied(s->B + b * s->B_row + k->group * s->numbers, s->B_token, s->length, s->numbers, r->B, k->numbers);
    copied(s->C + b * s->C_row + k->group * s->numbers, s->C_token, s->length, s->numbers, r->C, k->numbers);
    transposed(r->B, k->numbers, s->length, s->numbers, r->turned, r->apart);
    return at + chunks_of(s) * (int64_t)(sizeof(Decays) / sizeof(float));
}

static void at_chunk(Chunk *k, int64_t start) { k->start = start, k->rows = least(CHUNK, k->s->length - start); }

#define CHUNKS(r) for (int64_t start = 0, n = 0; start < (r)->k.s->length; start += CHUNK, n++)
#define BLOCKS_OF_ROWS(k) for (int64_t i = 0; i < (k)->rows; i += LANES)

/* Products of the chunk's rows with all tokens up to them: to [rows, tokens], of `left` [rows, depth] and `right` [depth, tokens]. */
static void products_before(const Row *r, const float *left, int64_t depth, int64_t row, const float *right, float *to) {
    const Chunk *k = &r->k;
    const int64_t columns = k->start + CHUNK;
    BLOCKS_OF_ROWS(k)
        product(&(Product){left + i * row, row, 1, right, r->apart, least(LANES, k->rows - i), k->start + i + LANES, depth, .to = to + i * columns, .width = columns});
}

/* to [rows, width] = what the chunk's rows of weights read of `from` [tokens, width]. */
static void read_before(const Row *r, const float *weights, const float *from, int64_t width, float *to) {
    const Chunk *k = &r->k;
    const int64_t columns = k->start + CHUNK;
    BLOCKS_OF_ROWS(k)
        product(&(Product){weights + i * columns, columns, 1, from, width, least(LANES, k->rows - i), width, least(k->start + i + LANES, k->s->length),
                           .to = to + i * width, .width = width});
}

/* What the chunk's rows `from` [rows, width] give back to all tokens that they read, added to `to` [tokens, width]. */
static void give_back(const Row *r, const float *weights, const float *from, int64_t width, float *to) {
    const Chunk *k = &r->k;
    const int64_t columns = k->start + CHUNK;
    product(&(Product){weights, 1, columns, from, width, k->start, width, k->rows, r->ones, to, to, width});
    BLOCKS_OF_ROWS(k)
        product(&(Product){weights + i * columns + k->start + i, 1, columns, from + i * width, width, least(LANES, k->rows - i), width, k->rows - i,
                           .to = to + (k->start + i) * width, .width = width});
}

/* Asks for a row of a head, which the processor does not foresee, since rows lie heads apart. */
#define FETCH_ROW(width, at, ...) \
    for (int64_t c = 0; c < (width); c += 16) __builtin_prefetch((at) + c, ##__VA_ARGS__);

static void scores_of(Row *r) {
    CHUNKS(r) {
        at_chunk(&r->k, start);
        products_before(r, r->C + start * r->k.numbers, r->k.s->numbers, r->k.numbers, r->turned, r->scores + rows_before(start));
    }
}

static inline lanes all_flushed(lanes x) { return (lanes)((integers)x & ~(integers)(x < all(TINY))); }

/* Decays of all chunks, and the inflow u = dt x. */
static void enter_head(Row *r, int64_t head) {
    Chunk *k = &r->k;
    CHUNKS(r) {
        at_chunk(k, start);
        decays_of(k, head, r->decays + n);
        scaled(k, x_at(k, head), k->s->x_token, r->decays[n].dt, k->ones, r->u + start * k->width);
    }
}

/* reach of all tokens before chunk n, from that of those before the last one. */
static void move_on(Row *r, int64_t n) {
    if (!n) return;
    const Decays *d = r->decays + n - 1;
    const int64_t last = (n - 1) * CHUNK;
    for (int64_t c = 0; c < last; c += LANES) store_all(r->reach + c, all_flushed(load_all(r->reach + c) * d->total));
    memcpy(r->reach + last, d->suffix, sizeof(d->suffix));
}

static void weights_of(const Row *r, const Decays *d, const float *scores, const float *next_x, const float *y) {
    const Chunk *k = &r->k;
    const int64_t columns = k->start + CHUNK;
    for (int64_t i = 0; i < k->rows; i++) {
        FETCH_ROW(k->s->width, next_x + i * k->s->x_token)
        FETCH_ROW(k->s->width, y + i * k->y_token, 1)
        for (int64_t c = 0; c < k->start; c += LANES)
            store_all(r->weights + i * columns + c, all_flushed(load_all(r->reach + c) * d->prefix[i]) * load_all(scores + i * columns + c));
    }
    for (int64_t c = 0; c < k->rows; c += LANES) {
        lanes row = all(0);
        const integers at = places(c);
        for (int64_t i = c; i < k->rows; i++) {
            const int64_t place = i * columns + k->start + c;
            row = extended(row, d->decay[i], at, i);
            store_all(r->weights + place, row * load_all(scores + place));
        }
    }
}

typedef struct {
    const Ssd *s;
    float *y;
} RowCall;

static void row_forward(const void *call, int64_t b, int64_t task, float *room) {
    const RowCall *f = call;
    const Ssd *s = f->s;
    Row r;
    Chunk *k = &r.k;
    float *out = row_of(s, b, task, room, &r);
    scores_of(&r);
    for (int64_t head = k->first; head < k->first + k->heads; head++) {
        enter_head(&r, head);
        CHUNKS(&r) {
            at_chunk(k, start);
            const float *x = x_at(k, head);
            float *y = f->y + y_at(k, head);
            move_on(&r, n);
            weights_of(&r, r.decays + n, r.scores + rows_before(start), x + s->width, y);
            read_before(&r, r.weights, r.u, k->width, out);
            for (int64_t i = 0; i < k->rows; i++)
                EACH_VECTOR(s->width, store(y + i * k->y_token + c, load_all(out + i * k->width + c) + skip_of(s, head, c) * load(x + i * s->x_token + c, count), count))
        }
    }
}

/* Returns 0, or 1 where there was no memory. */
int ssd_short(const Ssd *s, float *y) {
    const RowCall f = {s, y};
    return each_head(s->batch, s->groups * blocks_of(s), s->threads, row_room(s) + CHUNK * padded(s->width), row_forward, &f);
}

typedef struct {
    const Ssd *s;
    const Gradients *to;
} RowBackward;

/* Of a task gradients of scores, B and C; of a head u turned, dL/dy, dL/du, and of its steps what `decays_of_row` adds up. */
typedef struct {
    Row r;
    const Gradients *to;
    float *grad_scores, *grad_B, *grad_C, *turned_u, *grad_y, *grad_u, *between, *columns, *within, *reads, *carried, *passed;
} RowRoom;

static int64_t row_backward_room(const Ssd *s) {
    const int64_t tokens = row_tokens(s), numbers = padded(s->numbers), width = padded(s->width);
    return row_room(s) + rows_before(tokens) + (tokens + CHUNK) * numbers + width * (tokens + LANES) + 2 * tokens * width + CHUNK * CHUNK + 5 * tokens;
}

static void row_backward_of(const RowBackward *w, int64_t b, int64_t task, float *room, RowRoom *g) {
    float *at = row_of(w->s, b, task, room, &g->r);
    const Chunk *k = &g->r.k;
    const int64_t tokens = g->r.tokens;
    g->to = w->to, g->grad_scores = at, g->grad_B = at += rows_before(tokens), g->grad_C = at += tokens * k->numbers;
    g->turned_u = at += CHUNK * k->numbers, g->grad_y = at += k->width * g->r.apart, g->grad_u = at += tokens * k->width;
    g->between = at += tokens * k->width, g->columns = at += CHUNK * CHUNK, g->within = at += tokens, g->reads = at += tokens;
    g->carried = at += tokens, g->passed = at + tokens;
    memset(g->grad_scores, 0, rows_before(tokens) * sizeof(float));
}

static void row_sums(const lanes *from, int64_t rows, float *to) {
    for (int64_t i = 0; i < rows; i += LANES) store_all(to + i, totals((const float *)(from + i)));
}

static inline float *grad_x_at(const RowRoom *g, int64_t head) {
    const Chunk *k = &g->r.k;
    return g->to->x + k->b * g->to->x_row + k->start * g->to->x_token + head * k->s->width;
}

/* Of tokens before the chunk: weights in place of dL/dy . u, and what they add to the gradients of scores and of decays. */
static void scores_before(RowRoom *g, int64_t n, int64_t head, const float *scores, float *grad_scores) {
    const Row *r = &g->r;
    const Chunk *k = &r->k;
    const Decays *d = r->decays + n;
    const float *next_x = x_at(k, head + 1), *to_x = grad_x_at(g, head);
    const int64_t columns = k->start + CHUNK;
    lanes reads[CHUNK];
    memset(reads, 0, sizeof(reads)), memset(g->columns, 0, k->start * sizeof(float));
    for (int64_t i = 0; i < k->rows; i++) {
        FETCH_ROW(k->s->width, next_x + i * k->s->x_token)
        FETCH_ROW(k->s->width, to_x + i * g->to->x_token, 1)
        for (int64_t c = 0; c < k->start; c += LANES) {
            const int64_t place = i * columns + c;
            const lanes carries = all_flushed(load_all(r->reach + c) * d->prefix[i]), score = load_all(scores + place);
            const lanes grad = load_all(r->weights + place) * carries, both = grad * score;
            store_all(r->weights + place, carries * score);
            store_all(grad_scores + place, load_all(grad_scores + place) + grad);
            store_all(g->columns + c, load_all(g->columns + c) + both);
            reads[i] += both;
        }
    }
    row_sums(reads, CHUNK, g->reads + k->start);
    for (int64_t other = 0; other < n; other++) {
        lanes sum = all(0);
        for (int64_t c = other * CHUNK; c < (other + 1) * CHUNK; c += LANES) {
            const lanes column = load_all(g->columns + c);
            store_all(g->carried + c, load_all(g->carried + c) + column);
            sum += column;
        }
        const float passed = total(sum);
        for (int64_t m = other + 1; m < n; m++) g->passed[m] += passed;
    }
}

/* The same of its own tokens, and of their decays what steps i >= t read of steps j < t. */
static void scores_within(RowRoom *g, int64_t n, int64_t head, const float *scores, float *grad_scores) {
    const Row *r = &g->r;
    const Chunk *k = &r->k;
    const Decays *d = r->decays + n;
    const float *next_y = g->to->y + y_at(k, head + 1);
    const int64_t columns = k->start + CHUNK;
    lanes across[CHUNK];
    memset(across, 0, sizeof(across));
    decays_between(d, k->rows, g->between);
    for (int64_t c = 0; c < k->rows; c += LANES) {
        const integers at = places(c);
        lanes later = all(0);
        for (int64_t i = k->rows - 1; i >= c; i--) {
            if (!c) FETCH_ROW(k->s->width, next_y + i * k->y_token)
            const int64_t place = i * columns + k->start + c;
            const lanes between = load_all(g->between + i * CHUNK + c), score = load_all(scores + place), grad = load_all(r->weights + place) * between;
            store_all(r->weights + place, between * score);
            store_all(grad_scores + place, load_all(grad_scores + place) + grad);
            later += grad * score;
            across[i] += where(at < (int32_t)i, later, all(0));
        }
    }
    row_sums(across, CHUNK, g->within + k->start);
}

/* dL/dx and dL/dD, and of decays dL/dt and dL/dA: dL/d(dt A)_t adds up what all steps from t on read of all before it. */
static void gradients_of_row(RowRoom *g, int64_t head) {
    Row *r = &g->r;
    Chunk *k = &r->k;
    const Ssd *s = k->s;
    const Gradients *to = g->to;
    float *to_D = to->D ? to->D + (k->b * s->heads + head) * s->width : 0, to_A = 0;
    CHUNKS(r) {
        at_chunk(k, start);
        const Decays *d = r->decays + n;
        const float *x = x_at(k, head), *grad_y = g->grad_y + start * k->width, *grad_u = g->grad_u + start * k->width;
        float *to_x = grad_x_at(g, head), inflow[CHUNK], after[CHUNK], passed = g->passed[n], later = 0;
        lanes written[CHUNK];
        memset(written, 0, sizeof(written));
        for (int64_t i = 0; i < k->rows; i++)
            EACH_VECTOR(s->width, {
                const int64_t place = i * k->width + c;
                const lanes value = load(x + i * s->x_token + c, count), grad = load_all(grad_y + place), u = load_all(grad_u + place);
                written[i] += value * u;
                store(to_x + i * to->x_token + c, d->dt[i] * u + skip_of(s, head, c) * grad, count);
                if (to_D) store(to_D + c, load(to_D + c, count) + grad * value, count);
            })
        row_sums(written, CHUNK, inflow);
        for (int64_t i = 0; i < k->rows; i++) after[i] = passed, passed += g->carried[start + i];
        for (int64_t i = k->rows - 1; i >= 0; i--) {
            later += g->reads[start + i];
            const float grad = g->within[start + i] + later + after[i];
            to->dt[(k->b * s->length + start + i) * s->heads + head] = s->A[head] * grad + inflow[i];
            to_A += grad * d->dt[i];
        }
    }
    to->A[k->b * s->heads + head] = to_A;
}

static void row_backward(const void *call, int64_t b, int64_t task, float *room) {
    const RowBackward *w = call;
    const Ssd *s = w->s;
    const Gradients *to = w->to;
    RowRoom g;
    row_backward_of(w, b, task, room, &g);
    Row *r = &g.r;
    Chunk *k = &r->k;
    scores_of(r);
    for (int64_t head = k->first; head < k->first + k->heads; head++) {
        enter_head(r, head);
        transposed(r->u, k->width, s->length, k->width, g.turned_u, r->apart);
        k->start = 0;
        copied(to->y + y_at(k, head), k->y_token, s->length, s->width, g.grad_y, k->width);
        memset(g.carried, 0, (r->tokens + chunks_of(s)) * sizeof(float));
        CHUNKS(r) {
            at_chunk(k, start);
            move_on(r, n);
            const int64_t first = rows_before(start);
            const float *grad_y = g.grad_y + start * k->width;
            products_before(r, grad_y, s->width, k->width, g.turned_u, r->weights);
            scores_before(&g, n, head, r->scores + first, g.grad_scores + first);
            scores_within(&g, n, head, r->scores + first, g.grad_scores + first);
            give_back(r, r->weights, grad_y, k->width, g.grad_u);
        }
        gradients_of_row(&g, head);
    }
    float *to_B = to->B + b * to->B_row + task * s->numbers, *to_C = to->C + b * to->C_row + task * s->numbers;
    CHUNKS(r) {
        at_chunk(k, start);
        const float *grad_scores = g.grad_scores + rows_before(start);
        read_before(r, grad_scores, r->B, k->numbers, g.grad_C);
        given(g.grad_C, k->rows, s->numbers, k->numbers, to_C + start * to->C_token, to->C_token);
        give_back(r, grad_scores, r->C + start * k->numbers, k->numbers, g.grad_B);
    }
    given(g.grad_B, s->length, s->numbers, k->numbers, to_B, to->B_token);
}

/* Returns 0, or 1 where there was no memory. */
int ssd_short_backward(const Ssd *s, const Gradients *to) {
    const RowBackward w = {s, to};
    return each_head(s->batch, s->groups * blocks_of(s), s->threads, row_backward_room(s), row_backward, &w);
}
