/* The kernels for one kind of number, REAL: included by kernels.c for float and for double. */

#define LANES (VECTOR_BYTES / (int64_t)sizeof(REAL))
#define PANEL (LANES * COLUMNS)
#define vec NAME(vec)
#define bits NAME(bits)

typedef REAL vec __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL)), may_alias));
typedef REAL_BITS bits __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL)), may_alias)); /* what vec compares to */

/* Rows of a tensor */

static void NAME(load)(REAL *to, const void *tensor, int64_t at, int64_t size, int64_t padded, int64_t kind)
{
    if (kind == BFLOAT16)
        for (int64_t d = 0; d < size; d++) to[d] = widened(((const uint16_t *)tensor)[at + d]);
    else
        memcpy(to, (const REAL *)tensor + at, size * sizeof(REAL));
    for (int64_t d = size; d < padded; d++) to[d] = 0;
}

/* Where the processor rounds to bfloat16 itself it makes 0 of what is below 1e-38. */
static void NAME(narrow)(uint16_t *to, const REAL *from, int64_t size, REAL factor)
{
    int64_t d = 0;
#ifdef __AVX512BF16__
    if (REAL_KIND == FLOAT32)
        for (; d + 16 <= size; d += 16)
            _mm256_storeu_si256((__m256i *)(to + d), (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(
                                                         _mm512_loadu_ps((const float *)from + d), _mm512_set1_ps((float)factor))));
#endif
    for (; d < size; d++) to[d] = narrowed((float)(from[d] * factor));
}

static void NAME(store)(void *tensor, int64_t at, const REAL *from, int64_t size, REAL factor, int64_t kind)
{
    if (kind == BFLOAT16)
        NAME(narrow)((uint16_t *)tensor + at, from, size, factor);
    else
        for (int64_t d = 0; d < size; d++) ((REAL *)tensor)[at + d] = from[d] * factor;
}

/* The largest of `size` numbers; with a NaN among them some number or NaN. By hand: compilers that honour NaN make no vector code
   of a maximum. */
static REAL NAME(largest)(const REAL *row, int64_t size)
{
    REAL top = row[0];
    int64_t start = size / LANES * LANES;
    if (start) {
        vec tops = *(const vec *)row;
        for (int64_t p = LANES; p < start; p += LANES) {
            vec next = *(const vec *)(row + p);
            bits larger = next > tops;
            tops = (vec)((larger & (bits)next) | (~larger & (bits)tops));
        }
        for (int64_t lane = 0; lane < LANES; lane++) top = tops[lane] > top ? tops[lane] : top;
    }
    for (int64_t p = start; p < size; p++) top = row[p] > top ? row[p] : top;
    return top;
}

/* Products of a few rows: sums stay in registers, COLUMNS or 2 vectors wide. Widths are multiples of PANEL, strides of 2 * LANES. */

/* out [ROWS, stride] = x [ROWS, depth] * yt [depth, stride], its first `width` columns and what fills their vectors. */
static void NAME(multiply)(REAL *restrict out, const REAL *restrict x, const REAL *restrict yt, int64_t depth, int64_t stride,
                           int64_t width)
{
    for (int64_t p = 0; p < width; p += 2 * LANES) {
        vec sums[ROWS][2] = {0};
        for (int64_t d = 0; d < depth; d++) {
            vec left = *(const vec *)(yt + d * stride + p), right = *(const vec *)(yt + d * stride + p + LANES);
            for (int r = 0; r < ROWS; r++) {
                sums[r][0] += x[r * depth + d] * left;
                sums[r][1] += x[r * depth + d] * right;
            }
        }
        for (int r = 0; r < ROWS; r++) {
            *(vec *)(out + r * stride + p) = sums[r][0];
            *(vec *)(out + r * stride + p + LANES) = sums[r][1];
        }
    }
}

/* out [ROWS, width] = x [ROWS, stride], its first `depth` columns, * y [depth, width] */
static void NAME(combine)(REAL *restrict out, const REAL *restrict x, const REAL *restrict y, int64_t depth, int64_t stride,
                          int64_t width)
{
    for (int64_t column = 0; column < width; column += PANEL)
        for (int half = 0; half < ROWS; half += 4) {
            vec sums[4][COLUMNS] = {0};
            for (int64_t p = 0; p < depth; p++)
                for (int c = 0; c < COLUMNS; c++) {
                    vec part = *(const vec *)(y + p * width + column + c * LANES);
                    for (int r = 0; r < 4; r++) sums[r][c] += x[(half + r) * stride + p] * part;
                }
            for (int r = 0; r < 4; r++)
                for (int c = 0; c < COLUMNS; c++)
                    *(vec *)(out + (half + r) * width + column + c * LANES) = sums[r][c];
        }
}

/* out [depth, width] += x [ROWS, stride]^T, its first `depth` columns rounded up to 4, * y [ROWS, width] */
static void NAME(spread)(REAL *restrict out, const REAL *restrict x, const REAL *restrict y, int64_t depth, int64_t stride,
                         int64_t width)
{
    for (int64_t column = 0; column < width; column += PANEL)
        for (int64_t p = 0; p < depth; p += 4) {
            vec sums[4][COLUMNS];
            for (int k = 0; k < 4; k++)
                for (int c = 0; c < COLUMNS; c++) sums[k][c] = *(const vec *)(out + (p + k) * width + column + c * LANES);
            for (int r = 0; r < ROWS; r++)
                for (int c = 0; c < COLUMNS; c++) {
                    vec part = *(const vec *)(y + r * width + column + c * LANES);
                    for (int k = 0; k < 4; k++) sums[k][c] += x[r * stride + p + k] * part;
                }
            for (int k = 0; k < 4; k++)
                for (int c = 0; c < COLUMNS; c++) *(vec *)(out + (p + k) * width + column + c * LANES) = sums[k][c];
        }
}

/* Attention. Legend: D, E sizes of a head padded to PANEL; P keys of a block, `stride` those padded; R queries a key head. */

typedef struct {
    int64_t D, E, R, P, stride, first, count, head, window;
    const int32_t *path;
} NAME(block);

static NAME(block) NAME(open_block)(const attention *plan, int64_t number, int64_t head)
{
    int64_t num_keys = plan->path_start[number + 1] - plan->path_start[number];
    NAME(block) block = {
        .D = rounded_up(plan->size, PANEL),
        .E = rounded_up(plan->value_size, PANEL),
        .R = plan->num_heads / plan->num_key_heads,
        .P = num_keys,
        .stride = rounded_up(num_keys, 2 * LANES),
        .first = plan->first[number],
        .count = plan->count[number],
        .head = head,
        .window = plan->window,
        .path = plan->path + plan->path_start[number],
    };
    return block;
}

static int64_t NAME(longest_stride)(const attention *plan)
{
    int64_t longest = 0;
    for (int64_t b = 0; b < plan->num_blocks; b++)
        if (plan->path_start[b + 1] - plan->path_start[b] > longest) longest = plan->path_start[b + 1] - plan->path_start[b];
    return rounded_up(longest, 2 * LANES);
}

/* The rows of a block are its queries, and of each the R heads that read key head `head`. The last rows are repeated. */
static int64_t NAME(node_of)(const NAME(block) *b, int64_t row) { return b->first + least(row, b->count * b->R - 1) / b->R; }
static int64_t NAME(head_of)(const NAME(block) *b, int64_t row)
{
    return b->head * b->R + least(row, b->count * b->R - 1) % b->R;
}
static int64_t NAME(seen_by)(const NAME(block) *b, int64_t row)
{
    return b->P - b->count + least(row, b->count * b->R - 1) / b->R + 1;
}

/* A row sees those keys of the path, up to `seen`, that are in its window. */
static int64_t NAME(window_begin)(const NAME(block) *b, int64_t seen) { return seen > b->window ? seen - b->window : 0; }

/* The rows of `tensor` along the block's path: as they are where `rows` is given, transposed [size, stride] where `columns` is. */
static void NAME(gather)(const NAME(block) *b, const heads *tensor, int64_t size, int64_t padded, int64_t kind, REAL *rows,
                         REAL *columns, REAL *one)
{
    for (int64_t p = 0; p < b->P; p++) {
        REAL *row = rows ? rows + p * padded : one;
        NAME(load)(row, tensor->data, b->head * tensor->by_head + b->path[p] * tensor->by_node, size, padded, kind);
        if (columns)
            for (int64_t d = 0; d < padded; d++) columns[d * b->stride + p] = row[d];
    }
    if (columns)
        for (int64_t d = 0; d < padded; d++)
            for (int64_t p = b->P; p < b->stride; p++) columns[d * b->stride + p] = 0;
}

static void NAME(gather_queries)(const NAME(block) *b, const heads *tensor, int64_t row, int64_t size, int64_t padded,
                                 int64_t kind, REAL *to)
{
    for (int64_t i = 0; i < ROWS; i++) {
        int64_t at = NAME(head_of)(b, row + i) * tensor->by_head + NAME(node_of)(b, row + i) * tensor->by_node;
        NAME(load)(to + i * padded, tensor->data, at, size, padded, kind);
    }
}

/* out = softmax(S) V of one block and key head, S = scale * Q K^T or, with a softcap, softcap * tanh(scale * Q K^T / softcap);
   logsumexp: that of each query's S. Keys before the window of all ROWS queries are skipped. */
static void NAME(attend_block)(const attention *plan, const NAME(block) *b, const heads *query, const heads *key,
                               const heads *value, void *output, REAL *logsumexp, REAL *workspace)
{
    REAL *keys = workspace, *values = keys + b->D * b->stride, *queries = values + b->E * b->stride;
    REAL *scores = queries + ROWS * b->D, *outputs = scores + ROWS * b->stride, *one = outputs + ROWS * b->E;
    REAL softcap = (REAL)plan->softcap, scale = softcap ? 1 : (REAL)plan->scale, to_tanh = softcap ? (REAL)plan->scale / softcap : 0;
    NAME(gather)(b, key, plan->size, b->D, plan->kind, NULL, keys, one);
    NAME(gather)(b, value, plan->value_size, b->E, plan->kind, values, NULL, one);
    for (int64_t row = 0; row < b->count * b->R; row += ROWS) {
        int64_t most = NAME(seen_by)(b, row + ROWS - 1);
        int64_t start = NAME(window_begin)(b, NAME(seen_by)(b, row)) / (2 * LANES) * (2 * LANES);
        NAME(gather_queries)(b, query, row, plan->size, b->D, plan->kind, queries);
        NAME(multiply)(scores + start, queries, keys + start, b->D, b->stride, most - start);
        REAL inverse[ROWS];
        for (int64_t i = 0; i < ROWS; i++) {
            int64_t seen = NAME(seen_by)(b, row + i), begin = NAME(window_begin)(b, seen);
            REAL *line = scores + i * b->stride, sum = 0;
            if (softcap)
                for (int64_t p = begin; p < seen; p++) line[p] = softcap * TANH(line[p] * to_tanh);
            REAL top = NAME(largest)(line + begin, seen - begin);
            for (int64_t p = start; p < begin; p++) line[p] = 0;
            for (int64_t p = begin; p < seen; p++) {
                line[p] = EXP((line[p] - top) * scale);
                sum += line[p];
            }
            for (int64_t p = seen; p < most; p++) line[p] = 0;
            inverse[i] = 1 / sum;
            logsumexp[NAME(node_of)(b, row + i) * plan->num_heads + NAME(head_of)(b, row + i)] = top * scale + (REAL)log(sum);
        }
        NAME(combine)(outputs, scores + start, values + start * b->E, most - start, b->stride, b->E);
        for (int64_t i = 0; i < least(ROWS, b->count * b->R - row); i++) {
            int64_t at = (NAME(node_of)(b, row + i) * plan->num_heads + NAME(head_of)(b, row + i)) * plan->value_size;
            NAME(store)(output, at, outputs + i * b->E, plan->value_size, inverse[i], plan->kind);
        }
    }
}

/* Bytes that one thread works in. */
static int64_t NAME(workspace_bytes)(const attention *plan, int64_t backward)
{
    int64_t D = rounded_up(plan->size, PANEL), E = rounded_up(plan->value_size, PANEL), stride = NAME(longest_stride)(plan);
    int64_t forward_size = (D + E + ROWS) * stride + ROWS * (D + E) + D + E;
    int64_t backward_size = (3 * D + 2 * E + 2 * ROWS) * stride + ROWS * (2 * D + E) + E;
    return rounded_up((backward ? backward_size : forward_size) * sizeof(REAL), 64);
}

static void NAME(attend)(const attention *plan, const heads *query, const heads *key, const heads *value, void *output,
                         void *logsumexp, void *all_workspace)
{
    int64_t own_bytes = NAME(workspace_bytes)(plan, 0);
    #pragma omp parallel num_threads(plan->num_threads)
    {
        REAL *workspace = (REAL *)((char *)all_workspace + omp_get_thread_num() * own_bytes);
        #pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < plan->num_blocks * plan->num_key_heads; task++) {
            NAME(block) block = NAME(open_block)(plan, task / plan->num_key_heads, task % plan->num_key_heads);
            NAME(attend_block)(plan, &block, query, key, value, output, logsumexp, workspace);
        }
    }
}

/* With P the probabilities, computed again, and dO the output's gradient: dV = P^T dO, dS = P * (dO V^T - rowsum(dO * O)),
   dQ = scale * dS K, dK = scale * dS^T Q (Dao et al. 2022, appendix B); with a softcap dS * (1 - tanh^2) for dS. dK (without the scale) and dV are added to
   `key_sums` [N, K, size] and `value_sums` [N, K, value_size]. */
static void NAME(attend_block_backward)(const attention *plan, const NAME(block) *b, const heads *query, const heads *key,
                                        const heads *value, const void *output, const REAL *logsumexp, const heads *to_output,
                                        void *to_query, REAL *key_sums, REAL *value_sums, REAL *workspace)
{
    REAL *keys = workspace, *key_columns = keys + b->D * b->stride, *value_columns = key_columns + b->D * b->stride;
    REAL *to_keys = value_columns + b->E * b->stride, *to_values = to_keys + b->D * b->stride;
    REAL *scores = to_values + b->E * b->stride, *to_scores = scores + ROWS * b->stride;
    REAL *queries = to_scores + ROWS * b->stride, *to_queries = queries + ROWS * b->D, *to_outputs = to_queries + ROWS * b->D;
    REAL *one = to_outputs + ROWS * b->E;
    REAL scale = (REAL)plan->scale, softcap = (REAL)plan->softcap, to_tanh = softcap ? (REAL)plan->scale / softcap : 0;
    NAME(gather)(b, key, plan->size, b->D, plan->kind, keys, key_columns, NULL);
    NAME(gather)(b, value, plan->value_size, b->E, plan->kind, NULL, value_columns, one);
    memset(to_keys, 0, b->D * b->stride * sizeof(REAL));
    memset(to_values, 0, b->E * b->stride * sizeof(REAL));
    for (int64_t row = 0; row < b->count * b->R; row += ROWS) {
        int64_t num_rows = least(ROWS, b->count * b->R - row), most = NAME(seen_by)(b, row + ROWS - 1);
        int64_t start = NAME(window_begin)(b, NAME(seen_by)(b, row)) / (2 * LANES) * (2 * LANES);
        NAME(gather_queries)(b, query, row, plan->size, b->D, plan->kind, queries);
        NAME(gather_queries)(b, to_output, row, plan->value_size, b->E, plan->kind, to_outputs);
        NAME(multiply)(scores + start, queries, key_columns + start, b->D, b->stride, most - start);
        NAME(multiply)(to_scores + start, to_outputs, value_columns + start, b->E, b->stride, most - start);
        for (int64_t i = 0; i < ROWS; i++) {
            REAL *line = scores + i * b->stride, *to_line = to_scores + i * b->stride, delta = 0;
            int64_t at = NAME(node_of)(b, row + i) * plan->num_heads + NAME(head_of)(b, row + i);
            int64_t seen = NAME(seen_by)(b, row + i), begin = NAME(window_begin)(b, seen);
            if (i >= num_rows) seen = begin = start;
            REAL row_logsumexp = logsumexp[at];
            NAME(load)(one, output, at * plan->value_size, plan->value_size, b->E, plan->kind);
            for (int64_t d = 0; d < b->E; d++) delta += to_outputs[i * b->E + d] * one[d];
            for (int64_t p = start; p < begin; p++) line[p] = to_line[p] = 0;
            if (softcap)
                for (int64_t p = begin; p < seen; p++) {
                    REAL tangent = TANH(line[p] * to_tanh);
                    line[p] = EXP(softcap * tangent - row_logsumexp);
                    to_line[p] = line[p] * (to_line[p] - delta) * (1 - tangent * tangent);
                }
            else
                for (int64_t p = begin; p < seen; p++) {
                    line[p] = EXP(line[p] * scale - row_logsumexp);
                    to_line[p] = line[p] * (to_line[p] - delta);
                }
            for (int64_t p = seen; p < rounded_up(most, 4); p++) line[p] = to_line[p] = 0;
        }
        NAME(combine)(to_queries, to_scores + start, keys + start * b->D, most - start, b->stride, b->D);
        for (int64_t i = 0; i < num_rows; i++) {
            int64_t at = (NAME(node_of)(b, row + i) * plan->num_heads + NAME(head_of)(b, row + i)) * plan->size;
            NAME(store)(to_query, at, to_queries + i * b->D, plan->size, scale, plan->kind);
        }
        NAME(spread)(to_values + start * b->E, scores + start, to_outputs, most - start, b->stride, b->E);
        NAME(spread)(to_keys + start * b->D, to_scores + start, queries, most - start, b->stride, b->D);
    }
    for (int64_t p = 0; p < b->P; p++) {
        REAL *key_sum = key_sums + (b->path[p] * plan->num_key_heads + b->head) * plan->size;
        REAL *value_sum = value_sums + (b->path[p] * plan->num_key_heads + b->head) * plan->value_size;
        for (int64_t d = 0; d < plan->size; d++) key_sum[d] += to_keys[p * b->D + d];
        for (int64_t d = 0; d < plan->value_size; d++) value_sum[d] += to_values[p * b->E + d];
    }
}

/* Blocks share keys, so each partial accumulator has `sums` of its own [accumulators, N * K * (size + value_size)]; in the end
   they are added in their order. */
static void NAME(attend_backward)(const attention *plan, const heads *query, const heads *key, const heads *value,
                                  const void *output, const void *logsumexp, const heads *to_output, void *to_query, void *to_key,
                                  void *to_value, void *all_sums, void *all_workspace)
{
    int64_t K = plan->num_key_heads, own_bytes = NAME(workspace_bytes)(plan, 1);
    int64_t of_node = K * plan->size, value_of_node = K * plan->value_size, of_keys = plan->num_nodes * of_node;
    int64_t of_accumulator = of_keys + plan->num_nodes * value_of_node;
    REAL *sums = all_sums;
    #pragma omp parallel num_threads(plan->num_threads)
    {
        REAL *workspace = (REAL *)((char *)all_workspace + omp_get_thread_num() * own_bytes);
        #pragma omp for schedule(static)
        for (int64_t node = 0; node < plan->num_nodes * plan->num_accumulators; node++)
            memset(sums + node * (of_node + value_of_node), 0, (of_node + value_of_node) * sizeof(REAL));
        #pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < plan->num_accumulators * K; task++)
            for (int64_t number = 0; number < plan->num_blocks; number++)
                if (plan->accumulator[number] == task / K) {
                    NAME(block) block = NAME(open_block)(plan, number, task % K);
                    REAL *own = sums + task / K * of_accumulator;
                    NAME(attend_block_backward)(plan, &block, query, key, value, output, logsumexp, to_output, to_query, own,
                                                own + of_keys, workspace);
                }
        #pragma omp for schedule(static)
        for (int64_t node = 0; node < plan->num_nodes; node++) {
            REAL *key_sum = sums + node * of_node, *value_sum = sums + of_keys + node * value_of_node;
            for (int64_t accumulator = 1; accumulator < plan->num_accumulators; accumulator++) {
                for (int64_t d = 0; d < of_node; d++) key_sum[d] += key_sum[accumulator * of_accumulator + d];
                for (int64_t d = 0; d < value_of_node; d++) value_sum[d] += value_sum[accumulator * of_accumulator + d];
            }
            NAME(store)(to_key, node * of_node, key_sum, of_node, (REAL)plan->scale, plan->kind);
            NAME(store)(to_value, node * value_of_node, value_sum, value_of_node, 1, plan->kind);
        }
    }
}

/* Cross-entropy over rows of logits [num_rows, size], which stay in their own kind. */

/* logsumexp: log(sum(exp(row))); nll: what is missing from the logit of `ids` to it. */
static void NAME(cross_entropy)(int64_t num_threads, int64_t kind, int64_t num_rows, int64_t size, const void *logits,
                                const int64_t *ids, void *logsumexp, void *nll, void *rows)
{
    #pragma omp parallel num_threads(num_threads)
    {
        REAL *row = (REAL *)rows + omp_get_thread_num() * size;
        #pragma omp for schedule(static)
        for (int64_t m = 0; m < num_rows; m++) {
            NAME(load)(row, logits, m * size, size, size, kind);
            REAL top = NAME(largest)(row, size);
            double total = 0;
            for (int64_t start = 0; start < size; start += PORTION) {
                REAL sum = 0;
                for (int64_t v = start; v < least(size, start + PORTION); v++) sum += EXP(row[v] - top);
                total += sum;
            }
            ((REAL *)logsumexp)[m] = (REAL)(top + log(total));
            ((REAL *)nll)[m] = (REAL)(top - row[ids[m]] + log(total));
        }
    }
}

/* gradient = weights * (softmax(logits) - one-hot(ids)) */
static void NAME(cross_entropy_backward)(int64_t num_threads, int64_t kind, int64_t num_rows, int64_t size,
                                         const void *logits, const int64_t *ids, const void *logsumexp, const void *weights,
                                         void *gradient, void *rows)
{
    #pragma omp parallel num_threads(num_threads)
    {
        REAL *row = (REAL *)rows + omp_get_thread_num() * size;
        #pragma omp for schedule(static)
        for (int64_t m = 0; m < num_rows; m++) {
            REAL row_logsumexp = ((const REAL *)logsumexp)[m];
            NAME(load)(row, logits, m * size, size, size, kind);
            for (int64_t v = 0; v < size; v++) row[v] = EXP(row[v] - row_logsumexp);
            row[ids[m]] -= 1;
            NAME(store)(gradient, m * size, row, size, ((const REAL *)weights)[m], kind);
        }
    }
}

/* RMS norm (Zhang & Sennrich 2019): y = w x^, x^ = r x, r = (mean(x^2) + epsilon)^-1/2. With g = w dy: dx = r (g - x^ mean(g x^)),
   dw = sum over rows of dy x^. Rows are dealt to partial `sums` [NORM_ACCUMULATORS, size], which are added in their order.
   `residual`, which may be null, is the gradient that reaches the input past the norm: dx + residual is rounded once.
   rows: [num_threads, 3, size]. */
static void NAME(norm_backward)(int64_t num_threads, int64_t kind, int64_t num_rows, int64_t size, double epsilon, double shift,
                                const void *input, const void *weight, const void *to_output, const void *residual,
                                void *to_input, void *to_weight, void *all_sums, void *rows)
{
    REAL *sums = all_sums;
    #pragma omp parallel num_threads(num_threads)
    {
        REAL *w = (REAL *)rows + omp_get_thread_num() * 3 * size, *x = w + size, *g = x + size;
        NAME(load)(w, weight, 0, size, size, kind);
        for (int64_t d = 0; d < size; d++) w[d] += (REAL)shift;
        #pragma omp for schedule(static)
        for (int64_t accumulator = 0; accumulator < NORM_ACCUMULATORS; accumulator++) {
            REAL *sum = sums + accumulator * size;
            memset(sum, 0, size * sizeof(REAL));
            for (int64_t row = accumulator * num_rows / NORM_ACCUMULATORS;
                 row < (accumulator + 1) * num_rows / NORM_ACCUMULATORS; row++) {
                REAL squares = 0, product = 0;
                NAME(load)(x, input, row * size, size, size, kind);
                NAME(load)(g, to_output, row * size, size, size, kind);
                for (int64_t d = 0; d < size; d++) squares += x[d] * x[d];
                REAL r = 1 / SQRT(squares / size + (REAL)epsilon);
                for (int64_t d = 0; d < size; d++) {
                    x[d] *= r;
                    sum[d] += g[d] * x[d];
                    g[d] *= w[d];
                    product += g[d] * x[d];
                }
                product /= size;
                for (int64_t d = 0; d < size; d++) g[d] = (g[d] - x[d] * product) * r;
                if (residual) {
                    NAME(load)(x, residual, row * size, size, size, kind);
                    for (int64_t d = 0; d < size; d++) g[d] += x[d];
                }
                NAME(store)(to_input, row * size, g, size, 1, kind);
            }
        }
    }
    for (int64_t accumulator = 1; accumulator < NORM_ACCUMULATORS; accumulator++)
        for (int64_t d = 0; d < size; d++) sums[d] += sums[accumulator * size + d];
    if (to_weight) NAME(store)(to_weight, 0, sums, size, 1, kind);
}

/* RMS norm (Zhang & Sennrich 2019): output = (weight + shift) * input / rms. Without a shift the quotient is rounded before it is
   multiplied, as transformers does it. rows: [num_threads, 2, size] */
static void NAME(norm)(int64_t num_threads, int64_t kind, int64_t num_rows, int64_t size, double epsilon, double shift,
                       const void *input, const void *weight, void *output, void *rows)
{
    #pragma omp parallel num_threads(num_threads)
    {
        REAL *w = (REAL *)rows + omp_get_thread_num() * 2 * size, *x = w + size;
        NAME(load)(w, weight, 0, size, size, kind);
        for (int64_t d = 0; d < size; d++) w[d] += (REAL)shift;
        #pragma omp for schedule(static)
        for (int64_t row = 0; row < num_rows; row++) {
            REAL squares = 0;
            NAME(load)(x, input, row * size, size, size, kind);
            for (int64_t d = 0; d < size; d++) squares += x[d] * x[d];
            REAL r = 1 / SQRT(squares / size + (REAL)epsilon);
            if (kind == BFLOAT16 && shift == 0) {
                NAME(store)(output, row * size, x, size, r, kind);
                NAME(load)(x, output, row * size, size, size, kind);
                r = 1;
            }
            for (int64_t d = 0; d < size; d++) x[d] *= w[d];
            NAME(store)(output, row * size, x, size, r, kind);
        }
    }
}

/* Rotary embedding (Su et al. 2021): of each head, out = (first, second) * cos + (-second, first) * sin, or the rotation `back`.
   `output` may be the input. rows: [num_threads, 4, size]. */
static void NAME(rotate)(int64_t num_threads, int64_t kind, int64_t num_nodes, int64_t num_heads, int64_t size,
                         const heads *input, int64_t back, const void *cosines, const void *sines, void *output, void *rows)
{
    int64_t half = size / 2;
    #pragma omp parallel num_threads(num_threads)
    {
        REAL *c = (REAL *)rows + omp_get_thread_num() * 4 * size, *s = c + size, *x = s + size, *y = x + size;
        #pragma omp for schedule(static)
        for (int64_t node = 0; node < num_nodes; node++) {
            NAME(load)(c, cosines, node * size, size, size, kind);
            NAME(load)(s, sines, node * size, size, size, kind);
            for (int64_t head = 0; head < num_heads; head++) {
                NAME(load)(x, input->data, head * input->by_head + node * input->by_node, size, size, kind);
                if (back) {
                    for (int64_t d = 0; d < half; d++) y[d] = x[d] * c[d] + x[half + d] * s[half + d];
                    for (int64_t d = 0; d < half; d++) y[half + d] = x[half + d] * c[half + d] - x[d] * s[d];
                } else {
                    for (int64_t d = 0; d < half; d++) y[d] = x[d] * c[d] - x[half + d] * s[d];
                    for (int64_t d = 0; d < half; d++) y[half + d] = x[half + d] * c[half + d] + x[d] * s[half + d];
                }
                NAME(store)(output, (node * num_heads + head) * size, y, size, 1, kind);
            }
        }
    }
}

/* Gated activation (Shazeer 2020), silu(gate) * up, a few numbers at a time. */

static inline REAL NAME(sigmoid)(REAL x) { return 1 / (1 + EXP(x < -EXP_LIMIT ? EXP_LIMIT : -x)); }

static void NAME(gate)(int64_t num_threads, int64_t kind, int64_t size, const void *gate, const void *up, void *output)
{
    #pragma omp parallel for num_threads(num_threads) schedule(static)
    for (int64_t start = 0; start < size; start += PORTION) {
        REAL g[PORTION], u[PORTION];
        int64_t count = least(PORTION, size - start);
        NAME(load)(g, gate, start, count, count, kind);
        NAME(load)(u, up, start, count, count, kind);
        for (int64_t i = 0; i < count; i++) g[i] *= NAME(sigmoid)(g[i]) * u[i];
        NAME(store)(output, start, g, count, 1, kind);
    }
}

/* `to_gate` and `to_up` may be written over what is read. */
static void NAME(gate_backward)(int64_t num_threads, int64_t kind, int64_t size, const void *gate, const void *up,
                                const void *to_output, void *to_gate, void *to_up)
{
    #pragma omp parallel for num_threads(num_threads) schedule(static)
    for (int64_t start = 0; start < size; start += PORTION) {
        REAL g[PORTION], u[PORTION], d[PORTION];
        int64_t count = least(PORTION, size - start);
        NAME(load)(g, gate, start, count, count, kind);
        NAME(load)(u, up, start, count, count, kind);
        NAME(load)(d, to_output, start, count, count, kind);
        for (int64_t i = 0; i < count; i++) {
            REAL sigmoid = NAME(sigmoid)(g[i]), silu = sigmoid * g[i];
            u[i] *= d[i] * (sigmoid + silu * (1 - sigmoid));
            d[i] *= silu;
        }
        NAME(store)(to_gate, start, u, count, 1, kind);
        NAME(store)(to_up, start, d, count, 1, kind);
    }
}

/* AdamW: chunks of all parameters are one list. */

static const parameter *NAME(owner)(int64_t num_parameters, const parameter *parameters, int64_t chunk)
{
    int64_t low = 0, high = num_parameters - 1;
    while (low < high) {
        int64_t middle = (low + high + 1) / 2;
        if (parameters[middle].first_chunk <= chunk) low = middle;
        else high = middle - 1;
    }
    return parameters + low;
}

static int64_t NAME(num_chunks)(int64_t num_parameters, const parameter *parameters)
{
    const parameter *last = parameters + num_parameters - 1;
    return last->first_chunk + (last->size + CHUNK - 1) / CHUNK;
}

static inline REAL NAME(square)(REAL value) { return value * value; }

static double NAME(add_squares)(int64_t num_threads, int64_t num_parameters, const parameter *parameters, double *parts)
{
    int64_t num_chunks = NAME(num_chunks)(num_parameters, parameters);
    double total = 0;
    #pragma omp parallel for num_threads(num_threads) schedule(static)
    for (int64_t chunk = 0; chunk < num_chunks; chunk++) {
        const parameter *own = NAME(owner)(num_parameters, parameters, chunk);
        int64_t start = (chunk - own->first_chunk) * CHUNK, stop = least(own->size, start + CHUNK);
        double sum = 0;
        for (int64_t portion = start; portion < stop; portion += PORTION) {
            REAL part = 0;
            if (own->gradient_kind == BFLOAT16)
                for (int64_t i = portion; i < least(stop, portion + PORTION); i++)
                    part += NAME(square)(widened(((const uint16_t *)own->gradient)[i]));
            else
                for (int64_t i = portion; i < least(stop, portion + PORTION); i++)
                    part += NAME(square)(((const REAL *)own->gradient)[i]);
            sum += part;
        }
        parts[chunk] = sum;
    }
    for (int64_t chunk = 0; chunk < num_chunks; chunk++) total += parts[chunk];
    return total;
}

/* Loshchilov & Hutter 2019, in the order of torch's fused kernel; the gradient is divided by `divisor` first. */
static void NAME(step)(int64_t num_threads, int64_t num_parameters, const parameter *parameters, double rate, double beta1,
                       double beta2, double epsilon, double divisor, int64_t step)
{
    int64_t num_chunks = NAME(num_chunks)(num_parameters, parameters);
    REAL step_size = (REAL)(rate / (1 - pow(beta1, (double)step))), root = (REAL)(1 / sqrt(1 - pow(beta2, (double)step)));
    REAL keep1 = (REAL)beta1, add1 = (REAL)(1 - beta1), keep2 = (REAL)beta2, add2 = (REAL)(1 - beta2);
    REAL least_root = (REAL)epsilon, factor = (REAL)(1 / divisor);
    #pragma omp parallel for num_threads(num_threads) schedule(static)
    for (int64_t chunk = 0; chunk < num_chunks; chunk++) {
        const parameter *own = NAME(owner)(num_parameters, parameters, chunk);
        REAL *restrict master = own->master, *restrict exp_avg = own->exp_avg, *restrict exp_avg_sq = own->exp_avg_sq;
        REAL decay = (REAL)(1 - rate * own->decay);
        int64_t stop = least(own->size, (chunk - own->first_chunk + 1) * CHUNK);
        for (int64_t start = (chunk - own->first_chunk) * CHUNK; start < stop; start += PORTION) {
            REAL gradient[PORTION];
            int64_t size = least(PORTION, stop - start);
            NAME(load)(gradient, own->gradient, start, size, size, own->gradient_kind);
            REAL *restrict weights = master + start, *restrict first = exp_avg + start, *restrict second = exp_avg_sq + start;
            for (int64_t i = 0; i < size; i++) {
                REAL slope = gradient[i] * factor;
                first[i] = keep1 * first[i] + add1 * slope;
                second[i] = keep2 * second[i] + add2 * slope * slope;
                weights[i] = weights[i] * decay - step_size * first[i] / (SQRT(second[i]) * root + least_root);
            }
            if (own->low_precision)
                for (int64_t i = 0; i < size; i++) own->low_precision[start + i] = narrowed((float)weights[i]);
        }
    }
}
