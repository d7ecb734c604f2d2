/* The kernels in a program of their own, for a processor that Python does not run on here: fed with the same numbers everywhere, it
   prints all that they give as doubles. Run by tests/model/test_arm.py, once for each kind of number (argument 1). */

#include "kernels.c"

#include <stdio.h>
#include <stdlib.h>

static int64_t KIND;
static uint64_t state = 88172645463325252ull;

/* xorshift (Marsaglia 2003): a number in [-1, 1) */
static double next(void)
{
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return (double)(int64_t)(state >> 11) / (double)(1ll << 52) - 1;
}

static int64_t bytes(int64_t kind) { return kind == FLOAT64 ? 8 : kind == FLOAT32 ? 4 : 2; }

static void *room(int64_t size)
{
    void *found = aligned_alloc(64, (size_t)rounded_up(size + 64, 64));
    return memset(found, 0, (size_t)rounded_up(size + 64, 64));
}

static void *filled(int64_t kind, int64_t count)
{
    void *to = room(count * bytes(kind));
    for (int64_t i = 0; i < count; i++) {
        double value = next();
        if (kind == FLOAT64) ((double *)to)[i] = value;
        else if (kind == FLOAT32) ((float *)to)[i] = (float)value;
        else ((uint16_t *)to)[i] = narrowed((float)value);
    }
    return to;
}

static void show(int64_t kind, const void *from, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        double value = kind == FLOAT64   ? ((const double *)from)[i]
                       : kind == FLOAT32 ? ((const float *)from)[i]
                                         : widened(((const uint16_t *)from)[i]);
        fwrite(&value, sizeof value, 1, stdout);
    }
}

static int64_t computed(void) { return KIND == FLOAT64 ? FLOAT64 : FLOAT32; }

enum { N = 20, H = 4, K = 2, D = 6, E = 10, THREADS = 2 };

static void show_attention(int64_t window, double softcap)
{
    const int32_t first[] = {0, 8, 14}, count[] = {8, 6, 6}, accumulator[] = {0, 1, 0};
    const int32_t path[] = {0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 0, 1, 2, 3, 14, 15, 16, 17, 18, 19};
    const int64_t path_start[] = {0, 8, 22, 32};
    attention plan = {N, H, K, D, E, 3, 2, THREADS, window, first, count, path, accumulator, path_start, 0.3, softcap, KIND};
    heads query = {filled(KIND, H * N * D), D, H * D}, key = {filled(KIND, K * N * D), D, K * D};
    heads value = {filled(KIND, K * N * E), E, K * E}, to_output = {filled(KIND, H * N * E), E, H * E};
    void *output = room(N * H * E * 8), *logsumexp = room(N * H * 8), *sums = room(2 * N * K * (D + E) * 8);
    void *to_query = room(N * H * D * 8), *to_key = room(N * K * D * 8), *to_value = room(N * K * E * 8);
    attention_forward(&plan, &query, &key, &value, output, logsumexp, room(attention_workspace_bytes(&plan, 0)));
    attention_backward(&plan, &query, &key, &value, output, logsumexp, &to_output, to_query, to_key, to_value, sums,
                       room(attention_workspace_bytes(&plan, 1)));
    show(KIND, output, N * H * E), show(computed(), logsumexp, N * H);
    show(KIND, to_query, N * H * D), show(KIND, to_key, N * K * D), show(KIND, to_value, N * K * E);
}

static void show_rows(void)
{
    enum { ROWS_OF = 5, SIZE = 67 };
    const int64_t ids[] = {3, 66, 0, 17, 40};
    void *logits = filled(KIND, ROWS_OF * SIZE), *weights = filled(computed(), ROWS_OF), *rows = room(THREADS * 4 * SIZE * 8);
    void *logsumexp = room(ROWS_OF * 8), *nll = room(ROWS_OF * 8), *out = room(ROWS_OF * SIZE * 8);
    cross_entropy_forward(THREADS, KIND, ROWS_OF, SIZE, logits, ids, logsumexp, nll, rows);
    cross_entropy_backward(THREADS, KIND, ROWS_OF, SIZE, logits, ids, logsumexp, weights, out, rows);
    show(computed(), nll, ROWS_OF), show(KIND, out, ROWS_OF * SIZE);

    void *weight = filled(KIND, SIZE), *upstream = filled(KIND, ROWS_OF * SIZE), *sums = room(NORM_ACCUMULATORS * SIZE * 8);
    void *to_weight = room(SIZE * 8);
    rms_norm(THREADS, KIND, ROWS_OF, SIZE, 1e-5, 1, logits, weight, out, rows);
    show(KIND, out, ROWS_OF * SIZE);
    rms_norm_backward(THREADS, KIND, ROWS_OF, SIZE, 1e-5, 0, logits, weight, upstream, NULL, out, to_weight, sums, rows);
    show(KIND, out, ROWS_OF * SIZE), show(KIND, to_weight, SIZE);

    heads turned = {filled(KIND, N * H * D), D, H * D};
    void *cosines = filled(KIND, N * D), *sines = filled(KIND, N * D), *to = room(N * H * D * 8);
    for (int64_t back = 0; back < 2; back++) {
        rotate(THREADS, KIND, N, H, D, &turned, back, cosines, sines, to, rows);
        show(KIND, to, N * H * D);
    }
    void *gates = filled(KIND, ROWS_OF * SIZE), *to_gate = room(ROWS_OF * SIZE * 8), *to_up = room(ROWS_OF * SIZE * 8);
    gated_silu(THREADS, KIND, ROWS_OF * SIZE, gates, logits, out);
    gated_silu_backward(THREADS, KIND, ROWS_OF * SIZE, gates, logits, upstream, to_gate, to_up);
    show(KIND, out, ROWS_OF * SIZE), show(KIND, to_gate, ROWS_OF * SIZE), show(KIND, to_up, ROWS_OF * SIZE);
}

static void show_update(void)
{
    enum { SIZE = 1500 };
    int64_t kind = computed();
    parameter one = {filled(kind, SIZE), filled(kind, SIZE), room(SIZE * 8), filled(KIND, SIZE), room(SIZE * 2), SIZE, 0, KIND, 0.1};
    double parts[1], norm = squared_norm(THREADS, kind, 1, &one, parts);
    adamw(THREADS, kind, 1, &one, 1e-2, 0.9, 0.99, 1e-8, 2.0, 3);
    show(FLOAT64, &norm, 1), show(kind, one.master, SIZE), show(BFLOAT16, one.low_precision, SIZE);
}

static void show_four_bits(void)
{
    enum { SIZE = 150, CODES = (SIZE + 1) / 2, SCALES = (SIZE + 63) / 64 };
    float between[15], levels[16], mean = 0.25f;
    uint8_t codes[CODES], scale_codes[SCALES] = {3, 255, 90}, found[SIZE];
    for (int i = 0; i < 15; i++) between[i] = (float)(i - 7) / 8;
    for (int i = 0; i < 16; i++) levels[i] = (float)(i - 8) / 8;
    nf4_codes(THREADS, SIZE, filled(FLOAT32, SIZE), between, codes);
    nf4 quantized = {codes, scale_codes, filled(FLOAT32, 1), &mean, levels, filled(FLOAT32, 256)};
    void *out = room(SIZE * 4);
    dequantize_nf4(THREADS, KIND == BFLOAT16 ? BFLOAT16 : FLOAT32, SIZE, &quantized, out);
    show(KIND == BFLOAT16 ? BFLOAT16 : FLOAT32, out, SIZE);
    for (int i = 0; i < CODES; i++) found[i] = codes[i];
    for (int i = 0; i < CODES; i++) {
        double value = found[i];
        show(FLOAT64, &value, 1);
    }
}

/* A linear layer's weights in panels. */
static matrix laid_out(int64_t size, int64_t depth)
{
    void *panels = room(decode_panel_bytes(KIND, size, depth));
    lay_out_weights(THREADS, KIND, size, depth, filled(KIND, size * depth), panels);
    return (matrix){panels, filled(KIND, size), depth, size};
}

/* Three steps of a decoder of one layer, whose window is two tokens, that answers two prompts. */
static void show_answers(void)
{
    enum { WIDTH = 24, INNER = 70, VOCABULARY = 37, ROWS_OF = 2, CAPACITY = 64 };
    decode_layer l = {{filled(KIND, WIDTH), filled(KIND, WIDTH)}, {NULL, NULL}, laid_out((H + 2 * K) * D, WIDTH),
                      laid_out(WIDTH, H * D), laid_out(INNER, WIDTH), laid_out(INNER, WIDTH), laid_out(WIDTH, INNER), 1, 2};
    decoder d = {KIND, 1, WIDTH, INNER, H, K, D, 1e-5, 1, 0.4, &l, filled(KIND, VOCABULARY * WIDTH), filled(KIND, WIDTH),
                 laid_out(VOCABULARY, WIDTH)};
    int64_t stored = ROWS_OF * K * CAPACITY * 16 * 8;
    layer_cache cache = {room(stored), room(stored), NULL, NULL};
    void *logits = room(ROWS_OF * VOCABULARY * 8);
    for (int64_t t = 0; t < 3; t++) {
        int64_t ids[] = {t, 36 - t}, places[] = {t, t};
        decode_step s = {THREADS, ROWS_OF, 0, ROWS_OF, CAPACITY, 0, 0, NULL, NULL, ids, NULL, NULL, places, NULL,
                         filled(computed(), ROWS_OF * D), filled(computed(), ROWS_OF * D), &cache, logits, NULL};
        s.workspace = room(decode_workspace_bytes(&d, &s));
        decode(&d, &s);
        show(computed(), logits, ROWS_OF * VOCABULARY);
    }
}

int main(int argc, char **argv)
{
    KIND = argc > 1 ? atoi(argv[1]) : FLOAT32;
    show_attention(100, 0), show_attention(5, 3.0);
    show_rows();
    show_update();
    show_four_bits();
    show_answers();
    return 0;
}
