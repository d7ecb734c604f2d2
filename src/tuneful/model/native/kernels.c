/* What a step of training on a CPU does between its matrix products, for which torch has no operation of its own: attention
   over a trie, norms, rotary embedding, gate, the output head's cross-entropy, AdamW; products.h has the matrix products.
   `library.py` compiles this file for the machine at hand, `tools/wheel.py` for the processors that a wheel is made for.

   Everything is computed in float32 (kernels.h once) or, where the tensors are float64, in float64 (kernels.h again); tensors
   in bfloat16 are widened when read and rounded to nearest even when written. What several threads add up is added in an order
   that does not depend on their number. All memory comes from the caller. */

#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

/* What is called from outside: Windows hands out nothing else. */
#ifdef _WIN32
#define EXPORT __declspec(dllexport)
#else
#define EXPORT
#endif

/* Of OpenMP only its pragmas and these two, declared here: Apple's compiler has no <omp.h>. Without it, one thread does it all. */
#ifdef _OPENMP
int omp_get_thread_num(void);
int omp_get_num_threads(void);
#else
static inline int omp_get_thread_num(void) { return 0; }
static inline int omp_get_num_threads(void) { return 1; }
#endif

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define COLUMNS 4 /* vectors side by side in one product: with four rows as many sums as half the registers hold */
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#define COLUMNS 2
#else
#define VECTOR_BYTES 16
#define COLUMNS 4
#endif
#define ROWS 8               /* queries that are scored at once */
#define CHUNK 65536          /* elements of a tensor that one thread updates at once */
#define NORM_ACCUMULATORS 16 /* partial accumulators that a norm's rows are summed in */
#define MOST_QUERIES 256     /* that attend together: of one key head */
#define NF4_BLOCK 64         /* numbers of one scale */
#define NF4_ZERO 7           /* the code of 0 */
#define PORTION 1024         /* numbers at once: of squares until they meet the sum in double precision, of a gated activation */

enum { FLOAT32, FLOAT64, BFLOAT16 };

/* Attention over a trie, cut into blocks: `count` queries that follow one another on a branch, and the path they see. */
typedef struct {
    int64_t num_nodes, num_heads, num_key_heads, size, value_size; /* N, H, K, D, E */
    int64_t num_blocks, num_accumulators, num_threads;
    int64_t window; /* nodes of its path that a query sees, at most, itself among them */
    const int32_t *first, *count, *path; /* of a block: first query, number of queries; its path */
    const int32_t *accumulator;          /* of a block: the partial accumulator that its keys' gradients are added to */
    const int64_t *path_start;           /* [num_blocks + 1] into `path` */
    double scale, softcap; /* of the scores; softcap 0 for none */
    int64_t kind; /* of query, key, value, output and their gradients */
} attention;

/* A tensor as the model lays it out: element [head, node, d] stands at head * by_head + node * by_node + d. */
typedef struct {
    void *data;
    int64_t by_head, by_node;
} heads;

/* One parameter with its master weights, moments and gradient; `low_precision` is its copy in bfloat16, or null. */
typedef struct {
    void *master, *exp_avg, *exp_avg_sq, *gradient;
    uint16_t *low_precision;
    int64_t size, first_chunk, gradient_kind;
    double decay;
} parameter;

/* A linear layer that nothing trains, its weights in panels (decode.h); bias may be null. */
typedef struct {
    const void *panels, *bias;
    int64_t depth, size;
} matrix;

/* A decoder that answers, and its layers; weights are of one kind. `heads` is query, key and value in one. A token sees the
   `window` nearest of its row, itself among them, or, where that is 0, all. */
typedef struct {
    const void *norms[2], *head_norms[2]; /* before attention and before the gate; of queries and keys, or null */
    matrix heads, output, gate, up, down;
    int64_t rotates, window;
} decode_layer;

typedef struct {
    int64_t kind, num_layers, width, inner, num_heads, num_key_heads, size;
    double epsilon, shift, scale;
    const decode_layer *layers;
    const void *embedding, *norm;
    matrix head;
} decoder;

/* Where the keys and values of a layer lie: [slots, K, capacity] tokens, and those of the prefix [K, num_shared rounded up]. */
typedef struct {
    void *keys, *values, *prefix_keys, *prefix_values;
} layer_cache;

/* One call: tokens of prompts, with the plan of their trie and that of layers with a window, or the newest of each row. */
typedef struct {
    int64_t num_threads, num_tokens, num_written, num_read, capacity, num_shared, keeps_prefix;
    const attention *plan, *near;
    const int64_t *token_ids, *written, *slots, *places, *read; /* a row's own token is written at `places`, without a plan */
    const void *cosines, *sines;                                /* [num_tokens, size], in what is computed in */
    const layer_cache *caches;
    void *logits, *workspace; /* [num_read, vocabulary], in what is computed in */
} decode_step;

/* A matrix in 4 bits (nf4.py): two numbers a byte, the first in its upper half, NF4_BLOCK of one scale. */
typedef struct {
    const uint8_t *codes, *scale_codes;
    const float *scale_scales, *mean_scale; /* one of 256 scales; their mean, one number */
    const float *levels, *scale_levels;     /* what the 16 and the 256 codes stand for */
} nf4;

/* Rounded after the product and after the sum, as torch does it: `volatile` keeps the compiler from making one operation of both. */
static float scale_of_block(const nf4 *of, int64_t block)
{
    volatile float product = of->scale_levels[of->scale_codes[block]] * of->scale_scales[block / 256];
    return product + *of->mean_scale;
}

static int64_t rounded_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }
static int64_t least(int64_t one, int64_t other) { return one < other ? one : other; }
static int64_t most(int64_t one, int64_t other) { return one > other ? one : other; }

/* The next part of a piece of memory, of `count` numbers; `at` goes on to the one after. */
static void *take(char **at, int64_t count, int64_t bytes)
{
    void *part = *at;
    *at = (char *)((uintptr_t)*at + (uintptr_t)rounded_up(count * bytes, 64));
    return part;
}

static inline float widened(uint16_t half)
{
    union { uint32_t bits; float value; } whole = {.bits = (uint32_t)half << 16};
    return whole.value;
}

static inline uint16_t narrowed(float value)
{
    union { float value; uint32_t bits; } whole = {.value = value};
    uint16_t half = (uint16_t)((whole.bits + 0x7fff + ((whole.bits >> 16) & 1)) >> 16);
    return value != value ? 0x7fc0 : half;
}

/* A sum whose order the compiler may not change, where it can be told so. */
#if defined(__has_builtin)
#if __has_builtin(__builtin_assoc_barrier)
#define IN_ORDER(sum) __builtin_assoc_barrier(sum)
#endif
#endif
#ifndef IN_ORDER
#define IN_ORDER(sum) (sum)
#endif

/* e^x = 2^n e^r with |r| <= ln 2 / 2, ln 2 in two parts; the polynomial is Cephes' (Moshier 1992). */
static inline float nearest_power(float x) { return rintf(x * 1.44269504088896341f); }
static inline float beyond_power(float x, float n) { return IN_ORDER(x - n * 0.693359375f) + n * 2.12194440e-4f; }

static inline float power_of_two(float n)
{
    union { uint32_t bits; float value; } power = {.bits = (uint32_t)((int32_t)n + 127) << 23};
    return power.value;
}

static inline float exponential_less_one(float r)
{
    float sum = 1.9875691500e-4f;
    sum = sum * r + 1.3981999507e-3f;
    sum = sum * r + 8.3334519073e-3f;
    sum = sum * r + 4.1665795894e-2f;
    sum = sum * r + 1.6666665459e-1f;
    sum = sum * r + 5.0000001201e-1f;
    return sum * r * r + r;
}

/* e^x for x <= 88, to about 1e-7 of it; 0 is given as 1e-38. A loop over it becomes vector code. */
static inline float exponential(float x)
{
    x = x < -87.0f ? -87.0f : x;
    float n = nearest_power(x);
    return (exponential_less_one(beyond_power(x, n)) + 1.0f) * power_of_two(n);
}

/* tanh x = (e^2x - 1) / (e^2x + 1), to about 2e-7 of it; of 10 it is 1. */
static inline float hyperbolic_tangent(float x)
{
    x = 2 * (x < -10.0f ? -10.0f : x > 10.0f ? 10.0f : x);
    float n = nearest_power(x), power = power_of_two(n);
    float less_one = power * exponential_less_one(beyond_power(x, n)) + IN_ORDER(power - 1.0f);
    return less_one / (less_one + 2.0f);
}

#include "products.h"

#define REAL float
#define REAL_BITS int32_t
#define REAL_KIND FLOAT32
#define EXP exponential
#define EXP_LIMIT 88.0f
#define TANH hyperbolic_tangent
#define SQRT sqrtf
#define NAME(name) name##_float
#include "kernels.h"
#include "decode.h"
#undef REAL
#undef REAL_BITS
#undef REAL_KIND
#undef EXP
#undef EXP_LIMIT
#undef TANH
#undef SQRT
#undef NAME
#undef LANES
#undef PANEL
#undef vec
#undef bits

#define REAL double
#define REAL_BITS int64_t
#define REAL_KIND FLOAT64
#define EXP exp
#define EXP_LIMIT 700.0
#define TANH tanh
#define SQRT sqrt
#define NAME(name) name##_double
#include "kernels.h"
#include "decode.h"

/* Whether several threads share the work. */
EXPORT int64_t has_threads(void)
{
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}

/* Bytes of `workspace` that a forward, or a backward, of attention needs for all its threads. */
EXPORT int64_t attention_workspace_bytes(const attention *plan, int64_t backward)
{
    return plan->num_threads * (plan->kind == FLOAT64 ? workspace_bytes_double : workspace_bytes_float)(plan, backward);
}

EXPORT void attention_forward(const attention *plan, const heads *query, const heads *key, const heads *value, void *output,
                       void *logsumexp, void *workspace)
{
    (plan->kind == FLOAT64 ? attend_double : attend_float)(plan, query, key, value, output, logsumexp, workspace);
}

EXPORT void attention_backward(const attention *plan, const heads *query, const heads *key, const heads *value, const void *output,
                        const void *logsumexp, const heads *to_output, void *to_query, void *to_key, void *to_value, void *sums,
                        void *workspace)
{
    (plan->kind == FLOAT64 ? attend_backward_double : attend_backward_float)(
        plan, query, key, value, output, logsumexp, to_output, to_query, to_key, to_value, sums, workspace);
}

/* rows: [num_threads, size] of the numbers that are computed in. */
EXPORT void cross_entropy_forward(int64_t num_threads, int64_t kind, int64_t num_rows, int64_t size, const void *logits,
                           const int64_t *ids, void *logsumexp, void *nll, void *rows)
{
    (kind == FLOAT64 ? cross_entropy_double : cross_entropy_float)(
        num_threads, kind, num_rows, size, logits, ids, logsumexp, nll, rows);
}

EXPORT void cross_entropy_backward(int64_t num_threads, int64_t kind, int64_t num_rows, int64_t size, const void *logits,
                            const int64_t *ids, const void *logsumexp, const void *weights, void *gradient, void *rows)
{
    (kind == FLOAT64 ? cross_entropy_backward_double : cross_entropy_backward_float)(
        num_threads, kind, num_rows, size, logits, ids, logsumexp, weights, gradient, rows);
}

/* out [size], float32 or bfloat16: the numbers that `of` stands for. */
EXPORT void dequantize_nf4(int64_t num_threads, int64_t kind, int64_t size, const nf4 *of, void *out)
{
    #pragma omp parallel for num_threads(num_threads) schedule(static)
    for (int64_t start = 0; start < size; start += NF4_BLOCK) {
        float levels[NF4_BLOCK];
        int64_t count = least(NF4_BLOCK, size - start);
        for (int64_t i = 0; i < count; i++) levels[i] = of->levels[of->codes[(start + i) / 2] >> (i % 2 ? 0 : 4) & 15];
        store_float(out, start, levels, count, scale_of_block(of, start / NF4_BLOCK), kind);
    }
}

/* codes [size / 2, rounded up]: of each of the `numbers` how many of the 15 bounds `between` levels lie below it. */
EXPORT void nf4_codes(int64_t num_threads, int64_t size, const float *numbers, const float *between, uint8_t *codes)
{
    #pragma omp parallel for num_threads(num_threads) schedule(static)
    for (int64_t start = 0; start < size; start += NF4_BLOCK) {
        int32_t found[NF4_BLOCK] = {0};
        int64_t count = least(NF4_BLOCK, size - start);
        for (int64_t k = 0; k < 15; k++)
            for (int64_t i = 0; i < count; i++) found[i] += numbers[start + i] > between[k];
        if (count % 2) found[count] = NF4_ZERO;
        for (int64_t i = 0; i < count; i += 2) codes[(start + i) / 2] = (uint8_t)(found[i] << 4 | found[i + 1]);
    }
}

/* `residual` is added to the gradient of the input, or null; `to_weight` is null where it is not wanted. */
EXPORT void rms_norm_backward(int64_t num_threads, int64_t kind, int64_t num_rows, int64_t size, double epsilon, double shift,
                       const void *input, const void *weight, const void *to_output, const void *residual, void *to_input,
                       void *to_weight, void *sums, void *rows)
{
    (kind == FLOAT64 ? norm_backward_double : norm_backward_float)(num_threads, kind, num_rows, size, epsilon, shift, input,
                                                                   weight, to_output, residual, to_input, to_weight, sums, rows);
}

/* rows: [num_threads, 2, size] of the numbers that are computed in. */
EXPORT void rms_norm(int64_t num_threads, int64_t kind, int64_t num_rows, int64_t size, double epsilon, double shift,
              const void *input, const void *weight, void *output, void *rows)
{
    (kind == FLOAT64 ? norm_double : norm_float)(
        num_threads, kind, num_rows, size, epsilon, shift, input, weight, output, rows);
}

/* output [num_nodes, num_heads, size] = input rotated by cosines and sines, which are [num_nodes, size], or `back`, as for gradients;
   `output` may be the input. rows: [num_threads, 4, size] of the numbers that are computed in. */
EXPORT void rotate(int64_t num_threads, int64_t kind, int64_t num_nodes, int64_t num_heads, int64_t size, const heads *input,
            int64_t back, const void *cosines, const void *sines, void *output, void *rows)
{
    (kind == FLOAT64 ? rotate_double : rotate_float)(
        num_threads, kind, num_nodes, num_heads, size, input, back, cosines, sines, output, rows);
}

/* output = silu(gate) * up, all of `size` elements. */
EXPORT void gated_silu(int64_t num_threads, int64_t kind, int64_t size, const void *gate, const void *up, void *output)
{
    (kind == FLOAT64 ? gate_double : gate_float)(num_threads, kind, size, gate, up, output);
}

EXPORT void gated_silu_backward(int64_t num_threads, int64_t kind, int64_t size, const void *gate, const void *up,
                         const void *to_output, void *to_gate, void *to_up)
{
    (kind == FLOAT64 ? gate_backward_double : gate_backward_float)(
        num_threads, kind, size, gate, up, to_output, to_gate, to_up);
}

/* parts: one double for each chunk of all parameters. */
EXPORT double squared_norm(int64_t num_threads, int64_t kind, int64_t num_parameters, const parameter *parameters, double *parts)
{
    return (kind == FLOAT64 ? add_squares_double : add_squares_float)(num_threads, num_parameters, parameters, parts);
}

EXPORT void adamw(int64_t num_threads, int64_t kind, int64_t num_parameters, const parameter *parameters, double rate, double beta1,
           double beta2, double epsilon, double divisor, int64_t step)
{
    (kind == FLOAT64 ? step_double : step_float)(
        num_threads, num_parameters, parameters, rate, beta1, beta2, epsilon, divisor, step);
}

/* Weights [size, depth] of a kind as panels of `decode_panel_bytes`, which begin at a multiple of 64. */
EXPORT int64_t decode_panel_bytes(int64_t kind, int64_t size, int64_t depth)
{
    return (kind == FLOAT64 ? panel_bytes_double : panel_bytes_float)(kind, size, depth);
}

EXPORT void lay_out_weights(int64_t num_threads, int64_t kind, int64_t size, int64_t depth, const void *weights, void *panels)
{
    (kind == FLOAT64 ? lay_out_weights_double : lay_out_weights_float)(num_threads, kind, size, depth, weights, panels);
}

/* Bytes of `workspace` that a step needs. */
EXPORT int64_t decode_workspace_bytes(const decoder *d, const decode_step *s)
{
    return (d->kind == FLOAT64 ? step_bytes_double : step_bytes_float)(d, s);
}

EXPORT void decode(const decoder *d, const decode_step *s)
{
    (d->kind == FLOAT64 ? run_step_double : run_step_float)(d, s);
}

#ifdef PANEL_WIDTH
#include "layer.h"
#endif
