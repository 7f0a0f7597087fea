/* The loop over the heads of all rows, for arrays [batch, length, heads, width]. */

#include "lanes.h"

/* `work` gets a room of its own of `size` numbers. Returns 0, or 1 where there was no memory. */
static inline int each_head(int64_t batch, int64_t heads, int64_t threads, int64_t size,
                            void (*work)(const void *call, int64_t b, int64_t head, float *room), const void *call) {
    int failed = 0;
#pragma omp parallel for collapse(2) num_threads(threads) schedule(static)
    for (int64_t b = 0; b < batch; b++)
        for (int64_t head = 0; head < heads; head++) {
            float *room = aligned_alloc(64, (size * sizeof(float) + 63) / 64 * 64);
            if (room) {
                work(call, b, head, room);
                free(room);
            } else {
#pragma omp atomic write
                failed = 1;
            }
        }
    return failed;
}
