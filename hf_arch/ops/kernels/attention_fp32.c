/* Attention with products of fp32. */

#include "lanes.h"
#include "products.h"

#define SIDE LANES
#define DEPTH 1
#define ONE_FORM 1
#define WIDEST 1024 /* columns of a product */

typedef float Left;
typedef float Right;
typedef lanes Narrow;

static int known_products(void) { return LANES >= 8; }

static inline void begin_products(void) {}

static inline void end_products(void) {}

static inline Narrow narrowed(lanes x) { return x; }

static inline void store_left(Left *to, Narrow x) { store_all(to, x); }

static inline lanes load_left(const Left *from) { return load_all(from); }

#define store_right(to, first, second) /* nothing that is not there for the left */

static const float ones[WIDEST] = {[0 ... WIDEST - 1] = 1};

static void multiply(const Left *left, int64_t left_stride, const Right *right, int64_t right_stride, float *to, int64_t stride, int64_t rows,
                     int64_t columns, int64_t depth, int add) {
    product(&(Product){left, left_stride, 1, right, right_stride, rows, columns, depth, add ? ones : NULL, to, to, stride});
}

#include "attention.h"
