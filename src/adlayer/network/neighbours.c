/* Pairs of atoms within a cutoff, structure by structure, each atom with each: for cells of some hundred atoms.
 *
 * Slabs are periodic in the plane. Pair (i, j, n, m) has j's image n a + m b at a distance below the cutoff from i, each
 * once: i < j, or i = j and the image ahead. Those beyond the room are not written, but counted. An atom whose position
 * is not finite has no pairs.
 */

#include <math.h>
#include <stdint.h>

typedef struct {
    int64_t structures, room;
    double cutoff;
    const int64_t *start;   /* (structures + 1) the first atom of each */
    const double *x, *cell; /* (atoms, 3), (structures, 2, 2) vectors as rows */
    const uint8_t *mobile;  /* (atoms), or NULL: only pairs with a mobile atom */
} Search;

int64_t search(const Search *task, int64_t *first, int64_t *second, int64_t *shift)
{
    int64_t found = 0;
    const double limit = task->cutoff * task->cutoff;
    for (int64_t s = 0; s < task->structures; ++s) {
        const double *c = task->cell + 4 * s, ax = c[0], ay = c[1], bx = c[2], by = c[3], det = ax * by - ay * bx;
        /* Over how many lattice steps the cutoff reaches: over the cell's heights, with room for rounding. */
        const double reach_a = task->cutoff * hypot(bx, by) / fabs(det) + 1e-9;
        const double reach_b = task->cutoff * hypot(ax, ay) / fabs(det) + 1e-9;
        for (int64_t i = task->start[s]; i < task->start[s + 1]; ++i)
            for (int64_t j = i; j < task->start[s + 1]; ++j) {
                if (task->mobile && !task->mobile[i] && !task->mobile[j])
                    continue;
                const double *p = task->x + 3 * i, *q = task->x + 3 * j;
                const double x = q[0] - p[0], y = q[1] - p[1], z = q[2] - p[2];
                const double fa = (x * by - y * bx) / det, fb = (y * ax - x * ay) / det;
                const int64_t n1 = (int64_t)floor(reach_a - fa), m1 = (int64_t)floor(reach_b - fb);
                int64_t n0 = (int64_t)ceil(-reach_a - fa);
                const int64_t m0 = (int64_t)ceil(-reach_b - fb);
                if (i == j)
                    n0 = 0;
                for (int64_t n = n0; n <= n1; ++n)
                    for (int64_t m = i == j && !n ? 1 : m0; m <= m1; ++m) {
                        const double dx = x + n * ax + m * bx, dy = y + n * ay + m * by;
                        if (!(dx * dx + dy * dy + z * z < limit))
                            continue;
                        if (found < task->room) {
                            first[found] = i, second[found] = j;
                            shift[2 * found] = n, shift[2 * found + 1] = m;
                        }
                        ++found;
                    }
            }
    }
    return found;
}
