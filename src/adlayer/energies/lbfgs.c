/* The two-loop recursion of L-BFGS, structure by structure.
 *
 * m pairs, the latest last: displacements s and changes of the gradient y (m, atoms, 3), r = 1/(s.y) (m, structures), 0
 * where a pair is not used. Structure b holds the atoms from start[b] to start[b + 1]. On entry d (atoms, 3) holds the
 * forces, at the end H times them.
 */

#include <stdint.h>

static double product(const REAL *a, const REAL *b, int64_t n)
{
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t k = 0; k < n; ++k)
        sum += (double)a[k] * b[k];
    return sum;
}

void direction(int64_t m, int64_t atoms, int64_t structures, const int64_t *start, const REAL *s, const REAL *y,
               const REAL *r, const REAL *curvature, REAL *d)
{
    double factor[MEMORY];
    for (int64_t b = 0; b < structures; ++b) {
        const int64_t first = 3 * start[b], n = 3 * start[b + 1] - first;
        for (int64_t k = m - 1; k >= 0; --k) {
            factor[k] = r[k * structures + b] * product(s + 3 * atoms * k + first, d + first, n);
            for (int64_t e = first; e < first + n; ++e)
                d[e] -= (REAL)factor[k] * y[3 * atoms * k + e];
        }
        for (int64_t e = first; e < first + n; ++e)
            d[e] *= curvature[b];
        for (int64_t k = 0; k < m; ++k) {
            const double rest = factor[k] - r[k * structures + b] * product(y + 3 * atoms * k + first, d + first, n);
            for (int64_t e = first; e < first + n; ++e)
                d[e] += (REAL)rest * s[3 * atoms * k + e];
        }
    }
}
