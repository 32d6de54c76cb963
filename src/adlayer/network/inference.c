/* A PaiNN with fixed weights: the loops over pairs and features between its matrix products, and their gradients.
 *
 * F features. Arrays are contiguous: scalars s (atoms, F), vectors v (atoms, 3, F), contexts c (atoms, 3, F), mixed
 * vectors m (atoms, 3, 2, F), which are two images of each vector. A pair is an atom i and its neighbour j at distance d
 * along the unit vector u: one edge j -> i, and one i -> j for which u has the other sign. Filters W(d) (3, F) are cubic
 * between knots: the table holds value and derivative times spacing at each, (knots, 2, 3, F).
 */

#include <math.h>
#include <stdint.h>
#include <string.h>

#define ROOT(x) (sizeof(REAL) == 4 ? (REAL)sqrtf((float)(x)) : (REAL)sqrt(x))
#define EACH _Pragma("omp simd") for (int64_t f = 0; f < F; ++f)

typedef struct {
    int64_t pairs, knots;
    double cutoff;
    const int64_t *first, *second;
    const REAL *distance, *unit;
} Pairs;

/* Distances (P) and unit vectors (P, 3) of x_j + offset - x_i; lengths are kept away from 0. */
void geometry(int64_t pairs, const int64_t *first, const int64_t *second, const REAL *offset, const REAL *x,
              REAL *distance, REAL *unit)
{
    for (int64_t p = 0; p < pairs; ++p) {
        const REAL *from = x + 3 * first[p], *to = x + 3 * second[p];
        REAL r[3], square = (REAL)1e-12;
        for (int k = 0; k < 3; ++k) {
            r[k] = to[k] - from[k] + offset[3 * p + k];
            square += r[k] * r[k];
        }
        distance[p] = ROOT(square);
        for (int k = 0; k < 3; ++k)
            unit[3 * p + k] = r[k] / distance[p];
    }
}

/* Core repulsion A (1 - d/c)^2 of pairs closer than the sum c of their radii: half to each atom's energy; forces. */
void repulsion(const Pairs *pairs, const REAL *radius, const REAL *strength, REAL *energy, REAL *force)
{
    for (int64_t p = 0; p < pairs->pairs; ++p) {
        const int64_t i = pairs->first[p], j = pairs->second[p];
        const REAL contact = radius[i] + radius[j], inside = 1 - pairs->distance[p] / contact;
        if (!(inside > 0))
            continue;
        energy[i] += *strength * inside * inside / 2;
        energy[j] += *strength * inside * inside / 2;
        for (int k = 0; k < 3; ++k) {
            const REAL push = 2 * *strength * inside / contact * pairs->unit[3 * p + k];
            force[3 * i + k] -= push;
            force[3 * j + k] += push;
        }
    }
}

/* Forces (atoms, 3) of the gradients in distances and unit vectors, added. */
void forces(const Pairs *pairs, const REAL *dd, const REAL *du, REAL *force)
{
    for (int64_t p = 0; p < pairs->pairs; ++p) {
        const REAL *u = pairs->unit + 3 * p, *t = du + 3 * p, d = pairs->distance[p];
        const REAL along = t[0] * u[0] + t[1] * u[1] + t[2] * u[2];
        REAL *on = force + 3 * pairs->first[p], *back = force + 3 * pairs->second[p];
        for (int k = 0; k < 3; ++k) {
            const REAL g = dd[p] * u[k] + (t[k] - along * u[k]) / d;
            on[k] += g;
            back[k] -= g;
        }
    }
}

/* Where a distance lies in a table: the row of the knot below, and what the values (b) and slopes (s) of this knot and
 * the next count there, in the cubic between them and in its derivative (e, r).
 */
typedef struct {
    const REAL *row;
    REAL b0, s0, b1, s1, e, r0, r1;
} Place;

static inline Place placed(const Pairs *pairs, const REAL *table, REAL distance)
{
    const double place = (double)distance / pairs->cutoff * (double)(pairs->knots - 1);
    const int64_t knot = (int64_t)place;
    const REAL t = (REAL)(place - (double)knot), b1 = t * t * (3 - 2 * t);
    return (Place){.row = table + 6 * F * knot, .b0 = 1 - b1, .s0 = t * (1 - t) * (1 - t), .b1 = b1,
                   .s1 = t * t * (t - 1), .e = 6 * t * (1 - t), .r0 = (1 - t) * (1 - 3 * t), .r1 = t * (3 * t - 2)};
}

#define KNOT(n) at.row[(n) * F + f]
/* Part n of a filter for feature f, and its derivative in t, the distance over the spacing of the knots. */
#define FILTER(n) (at.b0 * KNOT(n) + at.s0 * KNOT(n + 3) + at.b1 * KNOT(n + 6) + at.s1 * KNOT(n + 9))
#define SLOPE(n) (at.e * (KNOT(n + 6) - KNOT(n)) + at.r0 * KNOT(n + 3) + at.r1 * KNOT(n + 9))

static inline void send(const REAL *restrict c, const REAL *restrict v, const REAL *restrict w, REAL ux, REAL uy,
                        REAL uz, REAL *restrict s, REAL *restrict t, int moved)
{
    if (!moved) {
        EACH {
            const REAL b = c[2 * F + f] * w[2 * F + f];
            s[f] += c[f] * w[f];
            t[f] += b * ux, t[F + f] += b * uy, t[2 * F + f] += b * uz;
        }
        return;
    }
    EACH {
        const REAL a = c[F + f] * w[F + f], b = c[2 * F + f] * w[2 * F + f];
        s[f] += c[f] * w[f];
        t[f] += a * v[f] + b * ux, t[F + f] += a * v[F + f] + b * uy, t[2 * F + f] += a * v[2 * F + f] + b * uz;
    }
}

/* Messages, Eqs. 7 and 8, added to s and t at receivers that are wanted (all, for NULL); v is NULL for zeros. */
void message(const Pairs *pairs, const REAL *table, const REAL *c, const REAL *v, const uint8_t *wanted, REAL *s,
             REAL *t)
{
    REAL w[3 * F];
    for (int64_t p = 0; p < pairs->pairs; ++p) {
        const int64_t i = pairs->first[p], j = pairs->second[p];
        const int there = !wanted || wanted[i], back = !wanted || wanted[j];
        const REAL d = pairs->distance[p], *u = pairs->unit + 3 * p;
        if (!(d < pairs->cutoff) || !(there || back))
            continue;
        const Place at = placed(pairs, table, d);
        EACH {
            w[f] = FILTER(0);
            w[F + f] = FILTER(1);
            w[2 * F + f] = FILTER(2);
        }
        if (there)
            send(c + 3 * F * j, v + 3 * F * j, w, u[0], u[1], u[2], s + F * i, t + 3 * F * i, v != 0);
        if (back)
            send(c + 3 * F * i, v + 3 * F * i, w, -u[0], -u[1], -u[2], s + F * j, t + 3 * F * j, v != 0);
    }
}

/* Gradients (g, h) of messages (s, t): added to dc and dv at the senders, and to distances dd (P) and unit vectors
 * du (P, 3). For v NULL neither dc nor dv is wanted.
 */
void message_gradient(const Pairs *pairs, const REAL *table, const REAL *c, const REAL *v, const REAL *g, const REAL *h,
                      REAL *dc, REAL *dv, REAL *dd, REAL *du)
{
    REAL own[6 * F];
    for (int64_t p = 0; p < pairs->pairs; ++p) {
        const int64_t i = pairs->first[p], j = pairs->second[p];
        const REAL d = pairs->distance[p], *u = pairs->unit + 3 * p, ux = u[0], uy = u[1], uz = u[2];
        if (!(d < pairs->cutoff))
            continue;
        const Place at = placed(pairs, table, d);
        const REAL *gi = g + F * i, *hi = h + 3 * F * i, *ci = c + 3 * F * i;
        const REAL *gj = g + F * j, *hj = h + 3 * F * j, *cj = c + 3 * F * j;
        REAL sx = 0, sy = 0, sz = 0, sd = 0;
        if (!v) {
#pragma omp simd reduction(+ : sx, sy, sz, sd)
            for (int64_t f = 0; f < F; ++f) {
                const REAL bi = ci[2 * F + f], bj = cj[2 * F + f], w = FILTER(2);
                const REAL x = hi[f] * bj - hj[f] * bi, y = hi[F + f] * bj - hj[F + f] * bi;
                const REAL z = hi[2 * F + f] * bj - hj[2 * F + f] * bi;
                sd += (gi[f] * cj[f] + gj[f] * ci[f]) * SLOPE(0) + (x * ux + y * uy + z * uz) * SLOPE(2);
                sx += x * w, sy += y * w, sz += z * w;
            }
        } else {
            const REAL *vi = v + 3 * F * i, *vj = v + 3 * F * j;
            REAL *dci = dc + 3 * F * i, *dvi = dv + 3 * F * i, *dcj = dc + 3 * F * j, *dvj = dv + 3 * F * j;
            if (i == j) { /* an atom and its own image: two results for one place, which a loop at once cannot add */
                memset(own, 0, sizeof own);
                dcj = own, dvj = own + 3 * F;
            }
#pragma omp simd reduction(+ : sx, sy, sz, sd)
            for (int64_t f = 0; f < F; ++f) {
                const REAL w0 = FILTER(0), w1 = FILTER(1), w2 = FILTER(2);
                const REAL ai = ci[F + f], bi = ci[2 * F + f], xi = hi[f], yi = hi[F + f], zi = hi[2 * F + f];
                const REAL aj = cj[F + f], bj = cj[2 * F + f], xj = hj[f], yj = hj[F + f], zj = hj[2 * F + f];
                const REAL to_i = xi * vj[f] + yi * vj[F + f] + zi * vj[2 * F + f];
                const REAL to_j = xj * vi[f] + yj * vi[F + f] + zj * vi[2 * F + f];
                const REAL x = xi * bj - xj * bi, y = yi * bj - yj * bi, z = zi * bj - zj * bi;
                dcj[f] += gi[f] * w0;
                dci[f] += gj[f] * w0;
                dcj[F + f] += to_i * w1;
                dci[F + f] += to_j * w1;
                dcj[2 * F + f] += (xi * ux + yi * uy + zi * uz) * w2;
                dci[2 * F + f] -= (xj * ux + yj * uy + zj * uz) * w2;
                dvj[f] += xi * aj * w1, dvj[F + f] += yi * aj * w1, dvj[2 * F + f] += zi * aj * w1;
                dvi[f] += xj * ai * w1, dvi[F + f] += yj * ai * w1, dvi[2 * F + f] += zj * ai * w1;
                sd += (gi[f] * cj[f] + gj[f] * ci[f]) * SLOPE(0) + (to_i * aj + to_j * ai) * SLOPE(1) +
                      (x * ux + y * uy + z * uz) * SLOPE(2);
                sx += x * w2, sy += y * w2, sz += z * w2;
            }
            if (i == j)
                for (int64_t f = 0; f < 3 * F; ++f)
                    dci[f] += own[f], dvi[f] += own[3 * F + f];
        }
        dd[p] += sd * (REAL)((double)(pairs->knots - 1) / pairs->cutoff);
        du[3 * p] += sx, du[3 * p + 1] += sy, du[3 * p + 2] += sz;
    }
}

/* What enters the update, Eqs. 9 and 10: (s, |m0|) side by side (atoms, 2, F), and m0 . m1 (atoms, F). */
void joined(int64_t atoms, const REAL *s, const REAL *m, REAL *both, REAL *dot)
{
    for (int64_t i = 0; i < atoms; ++i, s += F, m += 6 * F, both += 2 * F, dot += F) {
        EACH {
            const REAL x = m[f], y = m[2 * F + f], z = m[4 * F + f];
            both[f] = s[f];
            both[F + f] = ROOT(x * x + y * y + z * z + (REAL)EPSILON);
            dot[f] = x * m[F + f] + y * m[3 * F + f] + z * m[5 * F + f];
        }
    }
}

/* The update added to s and v. */
void update(int64_t atoms, const REAL *a, const REAL *m, const REAL *dot, REAL *s, REAL *v)
{
    for (int64_t i = 0; i < atoms; ++i, a += 3 * F, m += 6 * F, dot += F, s += F, v += 3 * F)
        EACH {
            s[f] += a[f] + a[2 * F + f] * dot[f];
            v[f] += a[F + f] * m[F + f];
            v[F + f] += a[F + f] * m[3 * F + f];
            v[2 * F + f] += a[F + f] * m[5 * F + f];
        }
}

/* Gradient in the update's context da (atoms, 3, F) of gradients g of s and h of v (NULL: none). */
void update_gradient(int64_t atoms, const REAL *g, const REAL *h, const REAL *m, const REAL *dot, REAL *da)
{
    for (int64_t i = 0; i < atoms; ++i, g += F, m += 6 * F, dot += F, da += 3 * F) {
        EACH {
            da[f] = g[f];
            da[F + f] = h ? h[f] * m[F + f] + h[F + f] * m[3 * F + f] + h[2 * F + f] * m[5 * F + f] : 0;
            da[2 * F + f] = g[f] * dot[f];
        }
        if (h)
            h += 3 * F;
    }
}

/* Gradient in m of all that it enters, dboth (atoms, 2, F) being the one in (s, |m0|), whose first half is added to g.
 */
void joined_gradient(int64_t atoms, const REAL *dboth, const REAL *both, const REAL *a, const REAL *m, const REAL *h,
                     REAL *g, REAL *dm)
{
    for (int64_t i = 0; i < atoms; ++i, dboth += 2 * F, both += 2 * F, a += 3 * F, m += 6 * F, g += F, dm += 6 * F) {
        EACH {
            const REAL stretch = dboth[F + f] / both[F + f], product = g[f] * a[2 * F + f], gate = a[F + f];
            for (int k = 0; k < 3; ++k) {
                dm[2 * k * F + f] = stretch * m[2 * k * F + f] + product * m[(2 * k + 1) * F + f];
                dm[(2 * k + 1) * F + f] = product * m[2 * k * F + f] + (h ? gate * h[k * F + f] : 0);
            }
            g[f] += dboth[f];
        }
        if (h)
            h += 3 * F;
    }
}
