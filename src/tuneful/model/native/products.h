/* Matrix products of bfloat16, summed in float32, for processors that have a dot product of it (Zen 4 and later, Cooper Lake).
   Where there is a matrix unit too, training leaves them to torch, and only answers are computed so. A training step multiplies a few hundred rows by weights that change with every step, so each has
   to be laid out anew: that is done panel by panel, in the cache, while the next panel is on its way.

   Cores are not alike, nor left alone: two threads share a stretch of the work and take from its two ends until they meet.

   A tile of TILE x PANEL_WIDTH sums stays in registers. Of the left matrix two neighbours along the depth are read at once
   and given to all vector lanes; the right one lies in panels [depth / 2][PANEL_WIDTH] of such pairs. Depth is walked in order,
   DEPTH pairs at a time, so a row's result depends neither on the other rows nor on the number of threads. Of a panel that is
   not full only the vectors that hold columns are computed: a product of 16 columns costs a quarter of one of 64.

   A factor may have a second, low-rank stretch of the depth (LoRA, Hu et al. 2021): its pairs stand behind those of the panel,
   and the sums stay in their registers between the two. */

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include <immintrin.h>

#define TILE 6         /* rows of sums: with four vectors each, 24 of 32 registers */
#define PANEL_WIDTH 64 /* columns of sums */
#define GROUP 48       /* rows of a transposed left matrix that are laid out together */
#define AHEAD 16       /* pairs of a panel that is not near yet: what is asked for meanwhile */
#define DEPTH 1024     /* pairs, at most: a panel of them and what it meets fit into 1 MiB of cache */

static int64_t num_parts(int64_t size, int64_t part) { return (size + part - 1) / part; }

typedef struct {
    const void *data; /* the first pair of the first row */
    int64_t by_row, by_pair; /* bytes from a row, and from a pair, to the next */
    int64_t num_pairs;
} left_pairs;

/* What becomes of a tile of sums. Of `out` the `width` columns are written, or where it is null all of `sums`. */
typedef struct {
    uint16_t *out;
    int64_t stride, width;
    float *sums;
    const float *scale; /* of what is written to `out`, or null */
    int past_cache;     /* whole lines of `out` are written, and not read again soon */
} destination;

static inline __attribute__((always_inline)) void add_pairs(const int rows, const int vectors, left_pairs left,
                                                            const uint32_t *right, __m512 tile[TILE][4])
{
    for (int64_t p = 0; p < left.num_pairs; p++) {
        __m512bh column[4];
        for (int c = 0; c < vectors; c++) column[c] = (__m512bh)_mm512_load_si512(right + p * PANEL_WIDTH + 16 * c);
        #pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            int32_t pair;
            memcpy(&pair, (const char *)left.data + r * left.by_row + p * left.by_pair, sizeof pair);
            for (int c = 0; c < vectors; c++)
                tile[r][c] = _mm512_dpbf16_ps(tile[r][c], (__m512bh)_mm512_set1_epi32(pair), column[c]);
        }
    }
}

/* to [rows, 16 * vectors] = start + left * right + low * what stands behind that. */
static inline __attribute__((always_inline)) void multiply_rows(const int rows, const int vectors, left_pairs left, left_pairs low,
                                                                const uint32_t *right, const float *start, int64_t start_stride,
                                                                const destination *to)
{
    __m512 tile[TILE][4];
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < vectors; c++) tile[r][c] = _mm512_load_ps(start + r * start_stride + 16 * c);
    add_pairs(rows, vectors, left, right, tile);
    add_pairs(rows, vectors, low, right + left.num_pairs * PANEL_WIDTH, tile);
    if (!to->out) {
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < vectors; c++) _mm512_store_ps(to->sums + r * PANEL_WIDTH + 16 * c, tile[r][c]);
        return;
    }
    if (to->scale)
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < vectors; c++) tile[r][c] = _mm512_mul_ps(tile[r][c], _mm512_set1_ps(*to->scale));
    uint64_t mask = to->width < PANEL_WIDTH ? (1ull << to->width) - 1 : ~0ull;
    for (int r = 0; r < rows; r++) {
        uint16_t *out = to->out + r * to->stride;
        __m512i first = (__m512i)_mm512_cvtne2ps_pbh(vectors > 1 ? tile[r][1] : _mm512_setzero_ps(), tile[r][0]);
        __m512i second = _mm512_setzero_si512();
        if (vectors > 2) second = (__m512i)_mm512_cvtne2ps_pbh(vectors > 3 ? tile[r][3] : _mm512_setzero_ps(), tile[r][2]);
        if (to->past_cache) {
            _mm512_stream_si512((__m512i *)out, first);
            _mm512_stream_si512((__m512i *)(out + 32), second);
        } else {
            _mm512_mask_storeu_epi16(out, (__mmask32)mask, first);
            if (vectors > 2) _mm512_mask_storeu_epi16(out + 32, (__mmask32)(mask >> 32), second);
        }
    }
}

static __attribute__((noinline)) void multiply_tile(int64_t rows, left_pairs left, left_pairs low, const uint32_t *right,
                                                    const float *start, int64_t start_stride, const destination *to)
{
#define CASE(n, v) \
    case 4 * n + v - 1: multiply_rows(n, v, left, low, right, start, start_stride, to); break;
#define CASES(n) CASE(n, 1) CASE(n, 2) CASE(n, 3) CASE(n, 4)
    switch (4 * rows + num_parts(to->width, 16) - 1) { CASES(1) CASES(2) CASES(3) CASES(4) CASES(5) CASES(6) }
#undef CASES
#undef CASE
}

/* sums = left * right, or that added, as multiply_tile gives it: of the first rows that meet a panel, which is not near yet, so that
   what comes AHEAD pairs later is asked for. */
static inline __attribute__((always_inline)) void first_tile(const int rows, const int vectors, left_pairs left,
                                                             const uint32_t *right, float *sums, int adds)
{
    __m512 tile[TILE][4];
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < vectors; c++) tile[r][c] = adds ? _mm512_load_ps(sums + r * PANEL_WIDTH + 16 * c) : _mm512_setzero_ps();
    for (int64_t p = 0; p < left.num_pairs; p++, right += PANEL_WIDTH) {
        __m512bh column[4];
        for (int c = 0; c < vectors; c++) {
            _mm_prefetch((const char *)(right + AHEAD * PANEL_WIDTH + 16 * c), _MM_HINT_T0);
            column[c] = (__m512bh)_mm512_load_si512(right + 16 * c);
        }
        for (int r = 0; r < rows; r++) {
            int32_t pair;
            memcpy(&pair, (const char *)left.data + r * left.by_row + p * left.by_pair, sizeof pair);
            for (int c = 0; c < vectors; c++)
                tile[r][c] = _mm512_dpbf16_ps(tile[r][c], (__m512bh)_mm512_set1_epi32(pair), column[c]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < vectors; c++) _mm512_store_ps(sums + r * PANEL_WIDTH + 16 * c, tile[r][c]);
}

static __attribute__((noinline)) void multiply_first_tile(int64_t rows, int64_t vectors, left_pairs left, const uint32_t *right,
                                                          float *sums, int adds)
{
#define CASE(n, v) \
    case 4 * n + v - 1: first_tile(n, v, left, right, sums, adds); break;
#define CASES(n) CASE(n, 1) CASE(n, 2) CASE(n, 3) CASE(n, 4)
    switch (4 * rows + vectors - 1) { CASES(1) CASES(2) CASES(3) CASES(4) CASES(5) CASES(6) }
#undef CASES
#undef CASE
}

static const left_pairs no_pairs;

/* panel [num_pairs][PANEL_WIDTH] of the pairs along `num_rows` rows that are columns of the panel; vectors are filled up with 0. */
static void lay_out_transposed(const uint16_t *rows, int64_t stride, int64_t num_rows, int64_t num_pairs, uint32_t *panel)
{
    for (int64_t row = 0; row < num_rows; row += 16)
        for (int64_t pair = 0; pair < num_pairs; pair += 16) {
            __m512i a[16], b[16];
            __mmask16 mask = (__mmask16)((1u << least(16, num_pairs - pair)) - 1);
            for (int i = 0; i < 16; i++)
                a[i] = row + i < num_rows ? _mm512_maskz_loadu_epi32(mask, rows + (row + i) * stride + 2 * pair)
                                          : _mm512_setzero_si512();
            for (int i = 0; i < 16; i += 2) {
                b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
                b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
            }
            for (int i = 0; i < 16; i += 4)
                for (int j = 0; j < 2; j++) {
                    a[i + 2 * j] = _mm512_unpacklo_epi64(b[i + j], b[i + j + 2]);
                    a[i + 2 * j + 1] = _mm512_unpackhi_epi64(b[i + j], b[i + j + 2]);
                }
            for (int i = 0; i < 16; i += 8)
                for (int j = 0; j < 4; j++) {
                    b[i + j] = _mm512_shuffle_i32x4(a[i + j], a[i + j + 4], 0x88);
                    b[i + j + 4] = _mm512_shuffle_i32x4(a[i + j], a[i + j + 4], 0xdd);
                }
            for (int i = 0; i < 8; i++) {
                a[i] = _mm512_shuffle_i32x4(b[i], b[i + 8], 0x88);
                a[i + 8] = _mm512_shuffle_i32x4(b[i], b[i + 8], 0xdd);
            }
            for (int64_t i = 0; i < least(16, num_pairs - pair); i++)
                _mm512_store_si512(panel + (pair + i) * PANEL_WIDTH + row, a[i]);
        }
}

/* panel [num_rows / 2, rounded up][width]: each row together with the one below it; vectors are filled up with 0. */
static void lay_out(const uint16_t *rows, int64_t stride, int64_t num_rows, int64_t num_columns, int64_t width, uint32_t *panel)
{
    for (int64_t row = 0; row < num_rows; row += 2)
        for (int64_t column = 0; column < least(width, num_columns); column += 16) {
            __mmask16 mask = (__mmask16)((1u << least(16, num_columns - column)) - 1);
            __mmask16 below = row + 1 < num_rows ? mask : 0;
            __m512i upper = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, rows + row * stride + column));
            __m512i lower = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(below, rows + (row + 1) * stride + column));
            _mm512_store_si512(panel + row / 2 * width + column, _mm512_or_si512(upper, _mm512_slli_epi32(lower, 16)));
        }
}

/* Ask for part `part` of `num_parts` of a matrix of `num_rows` rows of `row_bytes`, to have it near when it is wanted. */
static void fetch_part(const uint16_t *rows, int64_t stride, int64_t num_rows, int64_t row_bytes, int64_t part, int64_t num_parts)
{
    int64_t a_row = (row_bytes + 63) / 64, lines = num_rows * a_row;
    for (int64_t line = lines * part / num_parts; line < lines * (part + 1) / num_parts; line++)
        _mm_prefetch((const char *)(rows + line / a_row * stride) + line % a_row * 64, _MM_HINT_T1);
}

/* out [num_rows, num_columns] = that part of a matrix in 4 bits of rows of `stride`, which begins at `row` and `column`; `stride`,
   `column` and `num_columns` are multiples of NF4_BLOCK. */
static void decode_nf4(const nf4 *of, int64_t stride, int64_t row, int64_t column, int64_t num_rows, int64_t num_columns,
                       uint16_t *out)
{
    const __m512 levels = _mm512_loadu_ps(of->levels);
    const __m256i lower_half = _mm256_set1_epi8(15);
    for (int64_t r = 0; r < num_rows; r++)
        for (int64_t c = 0; c < num_columns; c += NF4_BLOCK, out += NF4_BLOCK) {
            int64_t at = (row + r) * stride + column + c;
            __m256i codes = _mm256_loadu_si256((const __m256i *)(of->codes + at / 2));
            __m256i first = _mm256_and_si256(_mm256_srli_epi16(codes, 4), lower_half), second = _mm256_and_si256(codes, lower_half);
            __m256i even = _mm256_unpacklo_epi8(first, second), odd = _mm256_unpackhi_epi8(first, second);
            __m128i parts[4] = {_mm256_castsi256_si128(even), _mm256_castsi256_si128(odd), _mm256_extracti128_si256(even, 1),
                                _mm256_extracti128_si256(odd, 1)};
            __m512 scale = _mm512_set1_ps(scale_of_block(of, at / NF4_BLOCK)), numbers[4];
            for (int i = 0; i < 4; i++)
                numbers[i] = _mm512_mul_ps(_mm512_permutexvar_ps(_mm512_cvtepu8_epi32(parts[i]), levels), scale);
            _mm512_storeu_si512(out, (__m512i)_mm512_cvtne2ps_pbh(numbers[1], numbers[0]));
            _mm512_storeu_si512(out + 32, (__m512i)_mm512_cvtne2ps_pbh(numbers[3], numbers[2]));
        }
}

static const float no_start[PANEL_WIDTH] __attribute__((aligned(64)));

/* Layers that read the same rows, as query, key and value do, are one call: `count` factors, each of its own size. */
typedef struct {
    const uint16_t *left, *right, *bias, *residual;
    uint16_t *out;
    int64_t size;
    const uint16_t *low_left, *low_right; /* the second stretch of the depth; null where `rank` is 0 */
    int64_t rank;                         /* even */
    const float *scale;                   /* of all, before it is rounded; null for 1 */
    const nf4 *quantized;                 /* what `right` is, where that is null; its rows are multiples of NF4_BLOCK */
} factor;

typedef struct {
    const uint16_t *rows;
    int64_t stride;
} matrix_part;

/* The right matrix of rows of `stride` from `row` and `column` on; where it is in 4 bits it is decoded into `room`. */
static matrix_part right_part(const factor *of, int64_t stride, int64_t row, int64_t column, int64_t num_rows,
                              int64_t num_columns, uint16_t *room)
{
    if (!of->quantized) return (matrix_part){of->right + row * stride + column, stride};
    decode_nf4(of->quantized, stride, row, column, num_rows, num_columns, room);
    return (matrix_part){room, num_columns};
}

static int64_t largest_rank(int64_t count, const factor *factors)
{
    int64_t rank = 0;
    for (int64_t f = 0; f < count; f++) rank = factors[f].rank > rank ? factors[f].rank : rank;
    return rank;
}

/* Pairs of the second stretch from a tile on. */
static left_pairs low_pairs(const factor *of, int64_t tile)
{
    return of->rank ? (left_pairs){of->low_left + tile * TILE * of->rank, 2 * of->rank, 4, of->rank / 2} : no_pairs;
}

EXPORT int64_t has_matrix_products(void)
{
#ifdef __AMX_BF16__
    return 0;
#else
    return 1;
#endif
}

/* The tiles of a product, laid out panel by panel, as one of two threads sees its share of them: `taken` counts, in its lower half
   those taken from the beginning on, in its upper half those from the end. */
typedef struct {
    int64_t first, size, is_alone, from_end;
    uint64_t *taken;
} share;

#define PAIR_BYTES 64 /* of the counters, one for two threads, each in a line of its own */
#define SMALLEST 8    /* tiles that are worth a panel of their own */

static share share_of_thread(uint64_t *counters, int64_t num_tiles)
{
    int64_t me = omp_get_thread_num(), num = omp_get_num_threads(), pair = me / 2;
    int64_t first = num_tiles * 2 * pair / num, last = num_tiles * least(num, 2 * pair + 2) / num;
    return (share){first, last - first, 2 * pair + 1 == num, me % 2, counters + pair * (PAIR_BYTES / 8)};
}

/* Take tiles of one panel, `panel` in all: what is there of it, or near the end a part. How many, from `start` on. */
static int64_t take_tiles(const share *own, int64_t panel, int64_t *start)
{
    uint64_t now = __atomic_load_n(own->taken, __ATOMIC_RELAXED), then;
    int64_t count;
    do {
        int64_t before = now & 0xffffffff, behind = now >> 32, rest = own->size - before - behind;
        if (rest == 0) return 0;
        *start = own->first + (own->from_end ? own->size - behind : before);
        count = own->from_end ? (*start - 1) % panel + 1 : panel - *start % panel;
        if (!own->is_alone && rest < 2 * panel) count = least(count, rest / 4 > SMALLEST ? rest / 4 : SMALLEST);
        count = least(count, rest);
        then = now + (own->from_end ? (uint64_t)count << 32 : (uint64_t)count);
    } while (!__atomic_compare_exchange_n(own->taken, &now, then, 1, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    if (own->from_end) *start -= count;
    return count;
}

static int64_t counter_bytes(int64_t num_threads) { return num_parts(num_threads, 2) * PAIR_BYTES; }

static int64_t own_bytes(int64_t num_rows, int64_t depth, int64_t rank)
{
    return (2 * least(depth / 2, DEPTH) + rank / 2 + rounded_up(num_rows, TILE) + 1) * PANEL_WIDTH * 4;
}

/* Bytes of `workspace` that `product` and `sum_of_products` need, the latter for its deepest factor; `rank` is the largest. */
EXPORT int64_t product_workspace_bytes(int64_t num_threads, int64_t num_rows, int64_t depth, int64_t rank)
{
    return counter_bytes(num_threads) + num_threads * own_bytes(num_rows, depth, rank);
}

typedef struct {
    float *first, *sums; /* what a tile starts from, and where it waits for the next stretch of the depth */
    uint16_t *decoded;   /* as large as the panel of the deepest stretch */
    uint32_t *panel;
} thread_workspace;

static thread_workspace workspace_of_thread(char *workspace, int64_t num_rows, int64_t depth, int64_t rank)
{
    float *first = (float *)(workspace + omp_get_thread_num() * own_bytes(num_rows, depth, rank));
    float *decoded = first + PANEL_WIDTH, *sums = decoded + least(depth / 2, DEPTH) * PANEL_WIDTH;
    return (thread_workspace){first, sums, (uint16_t *)decoded, (uint32_t *)(sums + rounded_up(num_rows, TILE) * PANEL_WIDTH)};
}

/* sums [num_rows, PANEL_WIDTH] = bias + the `width` columns of residual, rows `stride` apart. */
static void start_with_residual(const float *bias, const uint16_t *residual, int64_t stride, int64_t num_rows, int64_t width,
                                float *sums)
{
    for (int64_t row = 0; row < num_rows; row++)
        for (int64_t c = 0; c < PANEL_WIDTH; c++)
            sums[row * PANEL_WIDTH + c] = bias[c] + (c < width ? widened(residual[row * stride + c]) : 0);
}

/* One factor's out [num_rows, size] = scale * (left [num_rows, depth] * right [size, depth]^T + bias + residual
   + low_left [num_rows, rank] * low_right [size, rank]^T), of which bias, a row, and residual, a matrix, may be null; `left` is that
   of the first. The depth is even. */
EXPORT void product(int64_t num_threads, int64_t num_rows, int64_t depth, int64_t count, const factor *factors, void *workspace)
{
    int64_t num_tiles = num_parts(num_rows, TILE), num_chunks = num_parts(depth / 2, DEPTH), all = 0;
    int64_t rank = largest_rank(count, factors);
    const uint16_t *left = factors[0].left;
    uint64_t *counters = memset(workspace, 0, counter_bytes(num_threads));
    for (int64_t f = 0; f < count; f++) all += num_parts(factors[f].size, PANEL_WIDTH) * num_tiles;
    #pragma omp parallel num_threads((int)num_threads)
    {
        thread_workspace own = workspace_of_thread((char *)workspace + counter_bytes(num_threads), num_rows, depth, rank);
        share mine = share_of_thread(counters, all);
        int64_t start, taken, laid_out = -1;
        while ((taken = take_tiles(&mine, num_tiles, &start))) {
            const factor *at = factors;
            int64_t panel = start / num_tiles, number = panel, tile = start % num_tiles, last = tile + taken;
            for (; number >= num_parts(at->size, PANEL_WIDTH); at++) number -= num_parts(at->size, PANEL_WIDTH);
            int64_t column = number * PANEL_WIDTH, width = least(PANEL_WIDTH, at->size - column);
            int64_t beyond = mine.from_end ? column - PANEL_WIDTH : column + PANEL_WIDTH;
            for (int64_t c = 0; c < PANEL_WIDTH; c++)
                own.first[c] = at->bias && c < width ? widened(at->bias[column + c]) : 0;
            for (int64_t chunk = 0; chunk < num_chunks; chunk++) {
                int64_t pair = chunk * DEPTH, pairs = least(DEPTH, depth / 2 - pair), is_last = chunk + 1 == num_chunks;
                int64_t next = is_last ? beyond : column, next_pair = is_last ? 0 : pair + DEPTH;
                int64_t next_width = next < 0 ? 0 : least(PANEL_WIDTH, at->size - next);
                if (laid_out != panel || num_chunks > 1) {
                    matrix_part part = right_part(at, depth, column, 2 * pair, width, 2 * pairs, own.decoded);
                    lay_out_transposed(part.rows, part.stride, width, pairs, own.panel);
                    if (is_last && at->rank)
                        lay_out_transposed(at->low_right + column * at->rank, at->rank, width, at->rank / 2,
                                           own.panel + pairs * PANEL_WIDTH);
                }
                laid_out = panel;
                for (int64_t t = tile; t < last; t++) {
                    float *sums = own.sums + t * TILE * PANEL_WIDTH;
                    int64_t rows = least(TILE, num_rows - t * TILE), has_start = chunk || at->residual;
                    if (at->residual && !chunk)
                        start_with_residual(own.first, at->residual + t * TILE * at->size + column, at->size, rows, width, sums);
                    if (next_width > 0 && at->right)
                        fetch_part(at->right + next * depth + 2 * next_pair, depth, next_width,
                                   4 * least(DEPTH, depth / 2 - next_pair), t - tile, last - tile);
                    multiply_tile(rows, (left_pairs){left + t * TILE * depth + 2 * pair, 2 * depth, 4, pairs},
                                  is_last ? low_pairs(at, t) : no_pairs, own.panel, has_start ? sums : own.first,
                                  has_start ? PANEL_WIDTH : 0,
                                  &(destination){is_last ? at->out + t * TILE * at->size + column : NULL, at->size, width, sums,
                                                 at->scale, 0});
                }
            }
        }
    }
}

/* out [num_rows, num_columns] of the first = its scale * the sum of left [num_rows, size] * right [size, num_columns]
   + low_left [num_rows, rank] * low_right [rank, num_columns] over all factors: the gradient of what they read. Their sizes are
   even; `depth` is the largest. */
EXPORT void sum_of_products(int64_t num_threads, int64_t num_rows, int64_t num_columns, int64_t depth, int64_t count,
                     const factor *factors, void *workspace)
{
    int64_t num_tiles = num_parts(num_rows, TILE), all = num_parts(num_columns, PANEL_WIDTH) * num_tiles;
    int64_t rank = largest_rank(count, factors);
    uint64_t *counters = memset(workspace, 0, counter_bytes(num_threads));
    uint16_t *out = factors[0].out;
    #pragma omp parallel num_threads((int)num_threads)
    {
        thread_workspace own = workspace_of_thread((char *)workspace + counter_bytes(num_threads), num_rows, depth, rank);
        share mine = share_of_thread(counters, all);
        int64_t start, taken;
        while ((taken = take_tiles(&mine, num_tiles, &start))) {
            int64_t column = start / num_tiles * PANEL_WIDTH, width = least(PANEL_WIDTH, num_columns - column);
            int64_t tile = start % num_tiles, last = tile + taken;
            for (int64_t f = 0, pair = 0; f < count;) {
                const factor *at = factors + f, *next = at;
                int64_t pairs = least(DEPTH, at->size / 2 - pair), next_pair = pair + pairs, next_column = column;
                int is_first = f == 0 && pair == 0, ends = next_pair == at->size / 2;
                if (ends) next_pair = 0, f++, next = factors + f;
                int is_last = f == count;
                if (is_last) next = factors, next_column += mine.from_end ? -PANEL_WIDTH : PANEL_WIDTH;
                int64_t next_width = next_column < 0 ? 0 : least(PANEL_WIDTH, num_columns - next_column);
                matrix_part part = right_part(at, num_columns, 2 * pair, column, 2 * pairs, width, own.decoded);
                lay_out(part.rows, part.stride, 2 * pairs, width, PANEL_WIDTH, own.panel);
                if (ends && at->rank)
                    lay_out(at->low_right + column, num_columns, at->rank, width, PANEL_WIDTH, own.panel + pairs * PANEL_WIDTH);
                for (int64_t t = tile; t < last; t++) {
                    float *sums = own.sums + t * TILE * PANEL_WIDTH;
                    if (next_width > 0 && next->right)
                        fetch_part(next->right + 2 * next_pair * num_columns + next_column, num_columns,
                                   2 * least(DEPTH, next->size / 2 - next_pair), 2 * next_width, t - tile, last - tile);
                    multiply_tile(least(TILE, num_rows - t * TILE),
                                  (left_pairs){at->left + t * TILE * at->size + 2 * pair, 2 * at->size, 4, pairs},
                                  ends ? low_pairs(at, t) : no_pairs, own.panel, is_first ? no_start : sums,
                                  is_first ? 0 : PANEL_WIDTH,
                                  &(destination){is_last ? out + t * TILE * num_columns + column : NULL, num_columns, width, sums,
                                                 factors->scale, 0});
                }
                pair = next_pair;
            }
        }
    }
}

/* Bytes of `workspace` that `outer_products` needs. */
EXPORT int64_t outer_products_workspace_bytes(int64_t num_threads, int64_t num_rows, int64_t num_columns)
{
    int64_t pairs = num_parts(num_rows, 2), num_panels = num_parts(num_columns, PANEL_WIDTH);
    int64_t sums = pairs > DEPTH ? GROUP * num_panels * PANEL_WIDTH : 0;
    return counter_bytes(num_threads) + (num_panels * pairs * PANEL_WIDTH + num_threads * (least(pairs, DEPTH) * GROUP + sums)) * 4;
}

/* Of each factor out [size, num_columns] = left [num_rows, size]^T * right [num_rows, num_columns], `right` being that of the first:
   the gradients of weights that read the same rows. */
EXPORT void outer_products(int64_t num_threads, int64_t num_rows, int64_t num_columns, int64_t count, const factor *factors,
                    void *workspace)
{
    int64_t pairs = num_parts(num_rows, 2), num_panels = num_parts(num_columns, PANEL_WIDTH);
    int64_t num_chunks = num_parts(pairs, DEPTH), tiles = GROUP / TILE, a_group = num_panels * tiles, all = 0;
    int64_t own_sums = num_chunks > 1 ? GROUP * num_panels * PANEL_WIDTH : 0;
    const uint16_t *right = factors[0].right;
    uint64_t *counters = memset(workspace, 0, counter_bytes(num_threads));
    uint32_t *panels = (uint32_t *)((char *)workspace + counter_bytes(num_threads));
    for (int64_t f = 0; f < count; f++) all += num_parts(factors[f].size, GROUP) * a_group;
    #pragma omp parallel num_threads((int)num_threads)
    {
        int64_t me = omp_get_thread_num(), start, taken;
        float *sums = (float *)(panels + num_panels * pairs * PANEL_WIDTH) + me * (least(pairs, DEPTH) * GROUP + own_sums);
        uint32_t *group = (uint32_t *)(sums + own_sums);
        share mine = share_of_thread(counters, all);
        #pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < num_panels * num_chunks; i++) {
            int64_t column = i / num_chunks * PANEL_WIDTH, pair = i % num_chunks * DEPTH;
            lay_out(right + 2 * pair * num_columns + column, num_columns, least(2 * DEPTH, num_rows - 2 * pair),
                    num_columns - column, PANEL_WIDTH, panels + column * pairs + pair * PANEL_WIDTH);
        }
        while ((taken = take_tiles(&mine, a_group, &start))) {
            const factor *at = factors;
            int64_t number = start / a_group, tile = start % a_group, last = tile + taken;
            for (; number >= num_parts(at->size, GROUP); at++) number -= num_parts(at->size, GROUP);
            int64_t row = number * GROUP, height = least(GROUP, at->size - row);
            int whole_lines = num_columns % 32 == 0 && (uintptr_t)at->out % 64 == 0;
            for (int64_t chunk = 0; chunk < num_chunks; chunk++) {
                int64_t pair = chunk * DEPTH, deep = least(DEPTH, pairs - pair), is_last = chunk + 1 == num_chunks;
                lay_out(at->left + 2 * pair * at->size + row, at->size, least(2 * DEPTH, num_rows - 2 * pair), height, GROUP,
                        group);
                for (int64_t t = tile; t < last; t++) {
                    int64_t r = t % tiles * TILE, column = t / tiles * PANEL_WIDTH;
                    int64_t width = least(PANEL_WIDTH, num_columns - column);
                    float *own = sums + t * TILE * PANEL_WIDTH;
                    if (r < height)
                        multiply_tile(least(TILE, height - r), (left_pairs){group + r, 4, 4 * GROUP, deep}, no_pairs,
                                      panels + column * pairs + pair * PANEL_WIDTH, chunk ? own : no_start,
                                      chunk ? PANEL_WIDTH : 0,
                                      &(destination){is_last ? at->out + (row + r) * num_columns + column : NULL, num_columns,
                                                     width, own, NULL, whole_lines && width == PANEL_WIDTH});
                }
            }
        }
        _mm_sfence();
    }
}
#else
EXPORT int64_t has_matrix_products(void) { return 0; }
#endif
