/* The message of PaiNN and its derivatives, edge by edge, without an intermediate result of an edge's size.
 *
 * One function of five arguments holds it all. With edges j → i, features f and components k = x, y, z, summed over
 * edges and features,
 *
 *   Φ(g, c, v, W, u) = Σ  g⁰_i c⁰_j W⁰ + Σ_k gᵏ_i (c¹_j vᵏ_j W¹ + c²_j W² uᵏ),
 *
 *   message   ∂Φ/∂g: the message itself, Eqs. 7 and 8;
 *   gradient  ∂Φ/∂(c, v, W, u): what its gradient g at the receivers gives for its arguments;
 *   second    the gradient of ∂Φ/∂(c, v, W, u)·(ĉ, v̂, Ŵ, û) in (g, c, v, W, u), for gradients of forces.
 *
 * Rows are contiguous: g (4, receivers, F), c (atoms, 3, F), v (3, atoms, F), W (pairs, 3, F), u (3, pairs). Edge e
 * belongs to pair e modulo the number of pairs; on the second way u has the other sign. Results are written whole.
 */

#include <stdint.h>
#include <string.h>

typedef struct {
    int64_t pairs, ways, atoms, receivers, features;
    const int64_t *receiver, *sender;
} Edges;

#define SIZES const int64_t P = edges->pairs, N = edges->atoms, R = edges->receivers, F = edges->features

#define EACH_EDGE                                                                                                      \
    for (int64_t p = 0; p < P; ++p)                                                                                    \
        for (int64_t way = 0; way < edges->ways; ++way)

#define HERE                                                                                                           \
    const int64_t i = edges->receiver[way * P + p], j = edges->sender[way * P + p];                                    \
    const REAL sign = way ? -1 : 1, ux = sign * u[p], uy = sign * u[P + p], uz = sign * u[2 * P + p];                  \
    const REAL *restrict c0 = c + 3 * F * j, *restrict c1 = c0 + F, *restrict c2 = c1 + F;                             \
    const REAL *restrict vx = v + F * j, *restrict vy = vx + F * N, *restrict vz = vy + F * N;                         \
    const REAL *restrict w0 = w + 3 * F * p, *restrict w1 = w0 + F, *restrict w2 = w1 + F

#define RECEIVED                                                                                                       \
    const REAL *restrict g0 = g + F * i, *restrict gx = g0 + F * R, *restrict gy = gx + F * R, *restrict gz = gy + F * R

#define INTO_MESSAGE                                                                                                   \
    REAL *restrict d0 = dg + F * i, *restrict dx = d0 + F * R, *restrict dy = dx + F * R, *restrict dz = dy + F * R

#define INTO_GRADIENTS                                                                                                 \
    REAL *restrict dc0 = dc + 3 * F * j, *restrict dc1 = dc0 + F, *restrict dc2 = dc1 + F;                             \
    REAL *restrict dvx = dv + F * j, *restrict dvy = dvx + F * N, *restrict dvz = dvy + F * N;                         \
    REAL *restrict dw0 = dw + 3 * F * p, *restrict dw1 = dw0 + F, *restrict dw2 = dw1 + F;                             \
    REAL sx = 0, sy = 0, sz = 0;                                                                                       \
    if (!way)                                                                                                          \
    memset(dw0, 0, 3 * F * sizeof(REAL))

#define SUM_UNIT                                                                                                       \
    du[p] = (way ? du[p] : 0) + sign * sx;                                                                             \
    du[P + p] = (way ? du[P + p] : 0) + sign * sy;                                                                     \
    du[2 * P + p] = (way ? du[2 * P + p] : 0) + sign * sz

void message(const Edges *edges, const REAL *c, const REAL *v, const REAL *w, const REAL *u, REAL *dg)
{
    SIZES;
    memset(dg, 0, 4 * R * F * sizeof(REAL));
    EACH_EDGE {
        HERE;
        INTO_MESSAGE;
#pragma omp simd
        for (int64_t f = 0; f < F; ++f) {
            const REAL a = c1[f] * w1[f], b = c2[f] * w2[f];
            d0[f] += c0[f] * w0[f];
            dx[f] += a * vx[f] + b * ux;
            dy[f] += a * vy[f] + b * uy;
            dz[f] += a * vz[f] + b * uz;
        }
    }
}

void gradient(const Edges *edges, const REAL *g, const REAL *c, const REAL *v, const REAL *w, const REAL *u, REAL *dc,
              REAL *dv, REAL *dw, REAL *du)
{
    SIZES;
    memset(dc, 0, 3 * N * F * sizeof(REAL));
    memset(dv, 0, 3 * N * F * sizeof(REAL));
    EACH_EDGE {
        HERE;
        RECEIVED;
        INTO_GRADIENTS;
#pragma omp simd reduction(+ : sx, sy, sz)
        for (int64_t f = 0; f < F; ++f) {
            const REAL a = c1[f] * w1[f], b = c2[f] * w2[f];
            const REAL along = gx[f] * vx[f] + gy[f] * vy[f] + gz[f] * vz[f];
            const REAL across = gx[f] * ux + gy[f] * uy + gz[f] * uz;
            dc0[f] += g0[f] * w0[f];
            dw0[f] += g0[f] * c0[f];
            dc1[f] += along * w1[f];
            dw1[f] += along * c1[f];
            dc2[f] += across * w2[f];
            dw2[f] += across * c2[f];
            dvx[f] += gx[f] * a;
            dvy[f] += gy[f] * a;
            dvz[f] += gz[f] * a;
            sx += gx[f] * b;
            sy += gy[f] * b;
            sz += gz[f] * b;
        }
        SUM_UNIT;
    }
}

void second(const Edges *edges, const REAL *g, const REAL *c, const REAL *v, const REAL *w, const REAL *u,
            const REAL *tc, const REAL *tv, const REAL *tw, const REAL *tu, REAL *dg, REAL *dc, REAL *dv, REAL *dw,
            REAL *du)
{
    SIZES;
    memset(dg, 0, 4 * R * F * sizeof(REAL));
    memset(dc, 0, 3 * N * F * sizeof(REAL));
    memset(dv, 0, 3 * N * F * sizeof(REAL));
    EACH_EDGE {
        HERE;
        RECEIVED;
        INTO_GRADIENTS;
        INTO_MESSAGE;
        const REAL hx = sign * tu[p], hy = sign * tu[P + p], hz = sign * tu[2 * P + p];
        const REAL *restrict tc0 = tc + 3 * F * j, *restrict tc1 = tc0 + F, *restrict tc2 = tc1 + F;
        const REAL *restrict tvx = tv + F * j, *restrict tvy = tvx + F * N, *restrict tvz = tvy + F * N;
        const REAL *restrict tw0 = tw + 3 * F * p, *restrict tw1 = tw0 + F, *restrict tw2 = tw1 + F;
#pragma omp simd reduction(+ : sx, sy, sz)
        for (int64_t f = 0; f < F; ++f) {
            const REAL a = c1[f] * w1[f], ta = tc1[f] * w1[f] + c1[f] * tw1[f];
            const REAL b = c2[f] * w2[f], tb = tc2[f] * w2[f] + c2[f] * tw2[f];
            const REAL along = gx[f] * vx[f] + gy[f] * vy[f] + gz[f] * vz[f];
            const REAL t_along = gx[f] * tvx[f] + gy[f] * tvy[f] + gz[f] * tvz[f];
            const REAL across = gx[f] * ux + gy[f] * uy + gz[f] * uz;
            const REAL t_across = gx[f] * hx + gy[f] * hy + gz[f] * hz;
            d0[f] += tc0[f] * w0[f] + c0[f] * tw0[f];
            dx[f] += ta * vx[f] + a * tvx[f] + tb * ux + b * hx;
            dy[f] += ta * vy[f] + a * tvy[f] + tb * uy + b * hy;
            dz[f] += ta * vz[f] + a * tvz[f] + tb * uz + b * hz;
            dc0[f] += g0[f] * tw0[f];
            dw0[f] += g0[f] * tc0[f];
            dc1[f] += t_along * w1[f] + along * tw1[f];
            dw1[f] += t_along * c1[f] + along * tc1[f];
            dc2[f] += t_across * w2[f] + across * tw2[f];
            dw2[f] += t_across * c2[f] + across * tc2[f];
            dvx[f] += gx[f] * ta;
            dvy[f] += gy[f] * ta;
            dvz[f] += gz[f] * ta;
            sx += gx[f] * tb;
            sy += gy[f] * tb;
            sz += gz[f] * tb;
        }
        SUM_UNIT;
    }
}
