/* gelu(x) = x sigmoid(2 u) with u = sqrt(2 / pi) (x + 0.044715 x^3), which is its form by tanh. */

#define TWICE_ROOT 1.59576912f /* 2 sqrt(2 / pi) */
#define CUBE 0.044715f
#define LEAST_ODDS 1e37f /* exp(-2 u) from which on sigmoid is 0 */

static inline lanes odds_against(lanes x) { return exponential(-TWICE_ROOT * (x + CUBE * x * x * x)); } /* exp(-2 u) */

static inline lanes share(lanes odds) { return where(odds > LEAST_ODDS, all(0), 1.0f / (1.0f + odds)); }
