/* Attention with products of bf16. Queries, keys and values are fp32 or bf16; they are rounded to bf16. */

#include "pairs.h"

#ifdef HAS_PAIRS
#include "attention.h"
#else
int attention_products(void) { return 0; }
void attention_room(void *a, int64_t backward) {}
void attention(const void *a, float scale) {}
void attention_backward(const void *a, float scale) {}
#endif
