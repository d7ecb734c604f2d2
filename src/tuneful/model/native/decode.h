/* A step of a decoder that answers, all its layers in one call: included by kernels.c for float and for double.

     hidden += output(attention(norm(hidden))),    hidden += down(silu(gate(norm(hidden))) * up(norm(hidden)))

   (Vaswani et al. 2017; Touvron et al. 2023). Nothing is trained, so weights lie in panels that were laid out once, and what a
   step computes is kept nowhere but in the cache of keys and values. With a token a row a step is as long as it takes to read the
   weights: one team of threads goes through all layers, a barrier after each part, and takes pieces of panels as they come.
   Between the products numbers stay REAL; what a product reads, and the cache, are in the kind of the weights. No row's result
   depends on the other rows or on the number of threads.

   A token is the newest of its row, in order of slots, and attends to what its slot holds and to the prefix that all rows share;
   or it is a node of the trie of prompts that enter. Keys lie in blocks of LANES tokens [size][LANES], so that a score of each is
   one vector; values lie as they are, filled up to VALUE_STEP. */

#define MOST_ROWS 6     /* of a tile of sums that stay in registers */
#define BLOCK_ROWS 96   /* that meet a panel while it is near */
#define STRETCH 2048    /* of the depth at once: so much of a panel and of BLOCK_ROWS fits into the cache */
#define VALUE_STEP 16   /* what a value's size is rounded up to: a whole number of vectors on every processor */
#define GROUP_QUERIES 8 /* about so many queries meet a key of the prefix together */
#define FEW_ROWS 4      /* whose norms are computed faster than threads wait for one another */

/* What a product reads: bfloat16 only where there is a dot product of it. */
#ifdef PANEL_WIDTH
#define INPUT_KIND(kind) (kind)
#else
#define INPUT_KIND(kind) REAL_KIND
#endif

static inline int64_t NAME(bytes_of)(int64_t kind) { return kind == BFLOAT16 ? 2 : (int64_t)sizeof(REAL); }

static inline REAL NAME(element)(const void *tensor, int64_t at, int64_t kind)
{
    return kind == BFLOAT16 ? widened(((const uint16_t *)tensor)[at]) : ((const REAL *)tensor)[at];
}

static inline __attribute__((always_inline)) vec NAME(vector_at)(const int kind, const void *tensor, int64_t at)
{
    typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
    if (REAL_KIND == FLOAT32 && kind == BFLOAT16)
        return (vec)(__builtin_convertvector(*(const halves *)((const uint16_t *)tensor + at), bits) << 16);
    return *(const vec *)((const REAL *)tensor + at);
}

/* Few rows times columns that lie in vectors of LANES, from a step of the depth to the next `by_step` numbers on, from a vector to
   the next `by_vector`. */
typedef struct {
    const void *data;
    int64_t kind, by_step, by_vector, depth;
} NAME(columns);

/* out [rows, vectors] = left [rows, depth] * columns, or that added. */
static inline __attribute__((always_inline)) void NAME(tile_of)(const int rows, const int vectors, const int kind,
                                                                const REAL *left, int64_t by_row, const NAME(columns) *right,
                                                                REAL *out, int64_t stride, int adds)
{
    vec sums[MOST_ROWS][COLUMNS] = {0};
    if (adds)
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < vectors; c++) sums[r][c] = *(const vec *)(out + r * stride + c * LANES);
    for (int64_t d = 0; d < right->depth; d++) {
        vec part[COLUMNS];
        for (int c = 0; c < vectors; c++) part[c] = NAME(vector_at)(kind, right->data, d * right->by_step + c * right->by_vector);
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < vectors; c++) sums[r][c] += left[r * by_row + d] * part[c];
    }
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < vectors; c++) *(vec *)(out + r * stride + c * LANES) = sums[r][c];
}

static __attribute__((noinline)) void NAME(multiply_tile)(int64_t rows, int64_t vectors, const REAL *left, int64_t by_row,
                                                          const NAME(columns) *right, REAL *out, int64_t stride, int adds)
{
#define CASE(n, v)                                                                                               \
    case COLUMNS * n + v - 1:                                                                                    \
        if (REAL_KIND == FLOAT32 && right->kind == BFLOAT16) NAME(tile_of)(n, v, BFLOAT16, left, by_row, right, out, stride, adds);      \
        else NAME(tile_of)(n, v, REAL_KIND, left, by_row, right, out, stride, adds);                             \
        break;
#if COLUMNS == 4
#define CASES(n) CASE(n, 1) CASE(n, 2) CASE(n, 4)
#else
#define CASES(n) CASE(n, 1) CASE(n, 2)
#endif
    switch (COLUMNS * rows + vectors - 1) { CASES(1) CASES(2) CASES(3) CASES(4) CASES(5) CASES(6) }
#undef CASES
#undef CASE
}

/* out [num_rows, num_vectors] = left * right, or that added. */
static void NAME(multiply_columns)(int64_t num_rows, int64_t num_vectors, const REAL *left, int64_t by_row, NAME(columns) right,
                                   REAL *out, int64_t stride, int adds)
{
    for (int64_t v = 0, vectors; v < num_vectors; v += vectors) {
        NAME(columns) own = right;
        vectors = num_vectors - v >= COLUMNS ? COLUMNS : num_vectors - v >= 2 ? 2 : 1;
        own.data = (const char *)right.data + v * right.by_vector * NAME(bytes_of)(right.kind);
        for (int64_t r = 0; r < num_rows; r += MOST_ROWS)
            NAME(multiply_tile)(least(MOST_ROWS, num_rows - r), vectors, left + r * by_row, by_row, &own,
                                out + r * stride + v * LANES, stride, adds);
    }
}

/* Products with weights in panels */

/* Numbers of the panels of weights [size, depth]: of bfloat16 in pairs along the depth where they are multiplied so. */
static int64_t NAME(panel_bytes)(int64_t kind, int64_t size, int64_t depth)
{
    return rounded_up(size, PANEL) * depth * NAME(bytes_of)(kind);
}

static void NAME(lay_out_weights)(int64_t num_threads, int64_t kind, int64_t size, int64_t depth, const void *weights, void *panels)
{
    #pragma omp parallel for num_threads(num_threads) schedule(dynamic)
    for (int64_t column = 0; column < size; column += PANEL) {
        int64_t width = least(PANEL, size - column), bytes = NAME(bytes_of)(kind);
        char *panel = (char *)panels + column * depth * bytes;
        const char *rows = (const char *)weights + column * depth * bytes;
        memset(panel, 0, PANEL * depth * bytes);
#ifdef PANEL_WIDTH
        if (kind == BFLOAT16) {
            lay_out_transposed((const uint16_t *)rows, depth, width, depth / 2, (uint32_t *)panel);
            continue;
        }
#endif
        for (int64_t c = 0; c < width; c++)
            for (int64_t d = 0; d < depth; d++)
                memcpy(panel + (d * PANEL + c) * bytes, rows + (c * depth + d) * bytes, bytes);
    }
}

/* A piece of a product: some rows, and of a panel the columns from `column` on. */
typedef struct {
    int64_t panel, column, width, first, rows;
} NAME(piece);

/* Panels are dealt out in as many parts as give every thread several pieces, at most in single vectors. */
static int64_t NAME(parts_of)(const matrix *m, int64_t num_rows)
{
    int64_t pieces = (m->size + PANEL - 1) / PANEL * ((num_rows + BLOCK_ROWS - 1) / BLOCK_ROWS), parts = 1;
    while (parts < COLUMNS && pieces * parts < 8 * omp_get_num_threads()) parts *= 2;
    return parts;
}

static int64_t NAME(num_pieces)(const matrix *m, int64_t num_rows, int64_t parts)
{
    return (m->size + PANEL / parts - 1) / (PANEL / parts) * ((num_rows + BLOCK_ROWS - 1) / BLOCK_ROWS);
}

static NAME(piece) NAME(piece_of)(const matrix *m, int64_t num_rows, int64_t parts, int64_t number)
{
    int64_t blocks = (num_rows + BLOCK_ROWS - 1) / BLOCK_ROWS, width = PANEL / parts, column = number / blocks * width;
    int64_t first = number % blocks * BLOCK_ROWS;
    return (NAME(piece)){column / PANEL, column, least(width, m->size - column), first, least(BLOCK_ROWS, num_rows - first)};
}

/* sums [rows, PANEL], their first columns = the piece's rows of input [num_rows, depth] * its columns of the weights. */
static void NAME(piece_sums)(const matrix *m, int64_t kind, const NAME(piece) *p, const void *input, REAL *sums)
{
    int64_t within = p->column % PANEL, vectors = (p->width + LANES - 1) / LANES, depth = m->depth;
    const char *panel = (const char *)m->panels + p->panel * PANEL * depth * NAME(bytes_of)(kind);
#ifdef PANEL_WIDTH
    if (kind == BFLOAT16) {
        for (int64_t pair = 0; pair < depth / 2; pair += DEPTH)
            for (int64_t row = 0; row < p->rows; row += TILE) {
                left_pairs left = {(const uint16_t *)input + (p->first + row) * depth + 2 * pair, 2 * depth, 4,
                                   least(DEPTH, depth / 2 - pair)};
                const uint32_t *right = (const uint32_t *)panel + pair * PANEL_WIDTH + within;
                float *own = (float *)sums + row * PANEL_WIDTH;
                if (row == 0)
                    multiply_first_tile(least(TILE, p->rows), vectors, left, right, own, pair > 0);
                else
                    multiply_tile(least(TILE, p->rows - row), left, no_pairs, right, pair ? own : no_start,
                                  pair ? PANEL_WIDTH : 0, &(destination){NULL, 0, p->width, own, NULL, 0});
            }
        return;
    }
#endif
    for (int64_t start = 0; start < depth; start += STRETCH) {
        NAME(columns) right = {panel + (start * PANEL + within) * NAME(bytes_of)(kind), kind, PANEL, LANES,
                               least(STRETCH, depth - start)};
        NAME(multiply_columns)(p->rows, vectors, (const REAL *)input + p->first * depth + start, depth, right, sums, PANEL,
                               start > 0);
    }
}

/* out [num_rows, stride] = input * weights^T + bias, or that added; by all threads of the team. */
static void NAME(project)(const matrix *m, int64_t kind, int64_t num_rows, const void *input, REAL *out, int64_t stride, int adds,
                          REAL *sums)
{
    int64_t parts = NAME(parts_of)(m, num_rows);
    #pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < NAME(num_pieces)(m, num_rows, parts); i++) {
        NAME(piece) p = NAME(piece_of)(m, num_rows, parts, i);
        NAME(piece_sums)(m, kind, &p, input, sums);
        for (int64_t row = 0; row < p.rows; row++) {
            REAL *to = out + (p.first + row) * stride + p.column, *from = sums + row * PANEL;
            if (m->bias)
                for (int64_t c = 0; c < p.width; c++) from[c] += NAME(element)(m->bias, p.column + c, kind);
            if (adds)
                for (int64_t c = 0; c < p.width; c++) to[c] += from[c];
            else
                memcpy(to, from, p.width * sizeof *to);
        }
    }
}

/* out [num_rows, inner] = silu(gate) * up */
static void NAME(project_gated)(const decode_layer *l, int64_t kind, int64_t num_rows, const void *input, void *out, REAL *sums)
{
    int64_t parts = NAME(parts_of)(&l->gate, num_rows);
    REAL *ups = sums + BLOCK_ROWS * PANEL;
    #pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < NAME(num_pieces)(&l->gate, num_rows, parts); i++) {
        NAME(piece) p = NAME(piece_of)(&l->gate, num_rows, parts, i);
        NAME(piece_sums)(&l->gate, kind, &p, input, sums);
        NAME(piece_sums)(&l->up, kind, &p, input, ups);
        for (int64_t row = 0; row < p.rows; row++) {
            REAL *g = sums + row * PANEL, *u = ups + row * PANEL;
            if (l->gate.bias)
                for (int64_t c = 0; c < p.width; c++) g[c] += NAME(element)(l->gate.bias, p.column + c, kind);
            if (l->up.bias)
                for (int64_t c = 0; c < p.width; c++) u[c] += NAME(element)(l->up.bias, p.column + c, kind);
            for (int64_t c = 0; c < p.width; c++) g[c] *= NAME(sigmoid)(g[c]) * u[c];
            NAME(store)(out, (p.first + row) * l->gate.size + p.column, g, p.width, 1, INPUT_KIND(kind));
        }
    }
}

/* Norms and heads */

/* (weight + shift) * x / rms(x), in place */
static void NAME(norm_in_place)(REAL *x, const void *weight, int64_t size, int64_t kind, double epsilon, double shift)
{
    REAL squares = 0;
    for (int64_t d = 0; d < size; d++) squares += x[d] * x[d];
    REAL r = 1 / SQRT(squares / size + (REAL)epsilon);
    if (kind == BFLOAT16)
        for (int64_t d = 0; d < size; d++) x[d] *= r * (widened(((const uint16_t *)weight)[d]) + (REAL)shift);
    else
        for (int64_t d = 0; d < size; d++) x[d] *= r * (((const REAL *)weight)[d] + (REAL)shift);
}

static void NAME(norm_row)(const decoder *d, int64_t row, const REAL *hidden, const void *weight, void *out, REAL *one)
{
    memcpy(one, hidden + row * d->width, d->width * sizeof *one);
    NAME(norm_in_place)(one, weight, d->width, d->kind, d->epsilon, d->shift);
    NAME(store)(out, row * d->width, one, d->width, 1, INPUT_KIND(d->kind));
}

/* The norm of each row of hidden, for all threads in `out`; of few rows each thread computes all by itself, which is cheaper than
   waiting for the others. Where it lies. */
static const void *NAME(norm_rows)(const decoder *d, int64_t num_rows, const REAL *hidden, const void *weight, void *out, void *own,
                                   REAL *one)
{
    if (num_rows <= FEW_ROWS) {
        for (int64_t row = 0; row < num_rows; row++) NAME(norm_row)(d, row, hidden, weight, own, one);
        return own;
    }
    #pragma omp for schedule(static)
    for (int64_t row = 0; row < num_rows; row++) NAME(norm_row)(d, row, hidden, weight, out, one);
    return out;
}

/* A query or key of token n: its norm where it has one, turned by its position's angles where the layer rotates, and scaled. */
static void NAME(prepare_head)(const decoder *d, const decode_layer *l, const decode_step *s, int64_t n, int is_key, REAL *x)
{
    int64_t half = d->size / 2;
    if (l->head_norms[is_key]) NAME(norm_in_place)(x, l->head_norms[is_key], d->size, d->kind, d->epsilon, d->shift);
    if (l->rotates) {
        const REAL *c = (const REAL *)s->cosines + n * d->size, *sine = (const REAL *)s->sines + n * d->size;
        for (int64_t i = 0; i < half; i++) {
            REAL first = x[i] * c[i] - x[half + i] * sine[i];
            x[half + i] = x[half + i] * c[half + i] + x[i] * sine[half + i];
            x[i] = first;
        }
    }
}

/* Keys and values */

static int64_t NAME(value_size)(const decoder *d) { return rounded_up(d->size, VALUE_STEP); }

/* Put the key and the value of one key head at place `at` of a store of so many heads, `capacity` tokens each. */
static void NAME(keep)(const decoder *d, void *keys, void *values, int64_t head, int64_t capacity, int64_t at, const REAL *key,
                       const REAL *value)
{
    int64_t start = (head * capacity + at / LANES * LANES) * d->size + at % LANES;
    for (int64_t i = 0; i < d->size; i++) {
        if (d->kind == BFLOAT16) ((uint16_t *)keys)[start + i * LANES] = narrowed((float)key[i]);
        else ((REAL *)keys)[start + i * LANES] = key[i];
    }
    NAME(store)(values, (head * capacity + at) * NAME(value_size)(d), value, d->size, 1, d->kind);
}

/* The keys, or the values, of one head of a store as columns that are multiplied. */
static NAME(columns) NAME(keys_of)(const decoder *d, const void *keys, int64_t head, int64_t capacity)
{
    const char *data = (const char *)keys + head * capacity * d->size * NAME(bytes_of)(d->kind);
    return (NAME(columns)){data, d->kind, LANES, d->size * LANES, d->size};
}

static NAME(columns) NAME(values_of)(const decoder *d, const void *values, int64_t head, int64_t capacity, int64_t count)
{
    int64_t size = NAME(value_size)(d);
    const char *data = (const char *)values + head * capacity * size * NAME(bytes_of)(d->kind);
    return (NAME(columns)){data, d->kind, size, LANES, count};
}

/* The first place of a slot that its newest token, the one of number `held`, sees. Where there are windows nothing is shared. */
static int64_t NAME(first_seen)(const decode_layer *l, int64_t held) { return l->window ? most(0, held - l->window) : 0; }

static REAL NAME(add_exponentials)(REAL *line, int64_t count, REAL top)
{
    REAL sum = 0;
    for (int64_t t = 0; t < count; t++) {
        line[t] = EXP(line[t] - top);
        sum += line[t];
    }
    return sum;
}

static int64_t NAME(group_size)(const decoder *d, const decode_step *s)
{
    return s->num_shared ? most(1, GROUP_QUERIES * d->num_key_heads / d->num_heads) : 1;
}

/* Numbers in which a thread attends: of each query of a group itself, its scores and its output. */
static int64_t NAME(slots_workspace)(const decoder *d, const decode_step *s)
{
    int64_t stride = rounded_up(s->num_shared, LANES) + s->capacity;
    return NAME(group_size)(d, s) * d->num_heads / d->num_key_heads * (d->size + stride + NAME(value_size)(d));
}

/* out [rows, H * size] = attention of each row's newest token over its slot and the prefix; its key and value are kept first. */
static void NAME(attend_slots)(const decoder *d, const decode_layer *l, const decode_step *s, const layer_cache *cache, REAL *heads,
                               void *out, REAL *workspace)
{
    int64_t H = d->num_heads, K = d->num_key_heads, R = H / K, size = d->size, padded = NAME(value_size)(d);
    int64_t all = (H + 2 * K) * size, group = NAME(group_size)(d, s), num_shared = s->num_shared;
    int64_t room = rounded_up(num_shared, VALUE_STEP), before = rounded_up(num_shared, LANES), stride = before + s->capacity;
    REAL *queries = workspace, *scores = queries + group * R * size, *outputs = scores + group * R * stride;
    #pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < (s->num_tokens + group - 1) / group * K; task++) {
        int64_t k = task % K, first = task / K * group, count = least(group, s->num_tokens - first);
        for (int64_t i = 0; i < count; i++) {
            REAL *query = heads + (first + i) * all + k * R * size, *key = heads + (first + i) * all + (H + k) * size;
            for (int64_t r = 0; r < R; r++) {
                REAL *own = memcpy(queries + (i * R + r) * size, query + r * size, size * sizeof *own);
                NAME(prepare_head)(d, l, s, first + i, 0, own);
                for (int64_t c = 0; c < size; c++) own[c] *= (REAL)d->scale;
            }
            NAME(prepare_head)(d, l, s, first + i, 1, key);
            NAME(keep)(d, cache->keys, cache->values, (first + i) * K + k, s->capacity, s->places[first + i], key, key + K * size);
        }
        if (num_shared)
            NAME(multiply_columns)(count * R, before / LANES, queries, size, NAME(keys_of)(d, cache->prefix_keys, k, room), scores,
                                   stride, 0);
        for (int64_t i = 0; i < count; i++) {
            int64_t held = s->places[first + i] + 1, block = NAME(first_seen)(l, held) / LANES * LANES;
            NAME(columns) keys = NAME(keys_of)(d, cache->keys, (first + i) * K + k, s->capacity);
            keys.data = (const char *)keys.data + block * size * NAME(bytes_of)(d->kind);
            NAME(multiply_columns)(R, (held - block + LANES - 1) / LANES, queries + i * R * size, size, keys,
                                   scores + i * R * stride + before + block, stride, 0);
        }
        REAL inverse[MOST_QUERIES];
        for (int64_t row = 0; row < count * R; row++) {
            int64_t held = s->places[first + row / R] + 1, from = NAME(first_seen)(l, held);
            REAL *line = scores + row * stride, top = NAME(largest)(line + before + from, held - from);
            if (num_shared) {
                REAL other = NAME(largest)(line, num_shared);
                top = other > top ? other : top;
            }
            inverse[row] = 1 / (NAME(add_exponentials)(line, num_shared, top) + NAME(add_exponentials)(line + before + from, held - from, top));
        }
        if (num_shared)
            NAME(multiply_columns)(count * R, padded / LANES, scores, stride,
                                   NAME(values_of)(d, cache->prefix_values, k, room, num_shared), outputs, padded, 0);
        for (int64_t i = 0; i < count; i++) {
            int64_t held = s->places[first + i] + 1, from = NAME(first_seen)(l, held);
            NAME(columns) values = NAME(values_of)(d, cache->values, (first + i) * K + k, s->capacity, held - from);
            values.data = (const char *)values.data + from * padded * NAME(bytes_of)(d->kind);
            NAME(multiply_columns)(R, padded / LANES, scores + i * R * stride + before + from, stride, values,
                                   outputs + i * R * padded, padded, num_shared > 0);
            for (int64_t r = 0; r < R; r++)
                NAME(store)(out, ((first + i) * H + k * R + r) * size, outputs + (i * R + r) * padded, size,
                            inverse[i * R + r], INPUT_KIND(d->kind));
        }
    }
}

/* The same for nodes of a trie: attended [num_tokens, H * size]. What belongs to rows, and to the prefix, is kept. */
static void NAME(attend_trie)(const decoder *d, const decode_layer *l, const decode_step *s, const layer_cache *cache, REAL *all_heads,
                              REAL *attended, REAL *logsumexp, REAL *workspace)
{
    int64_t H = d->num_heads, K = d->num_key_heads, size = d->size, all = (H + 2 * K) * size;
    int64_t room = rounded_up(s->num_shared, VALUE_STEP);
    heads query = {all_heads, size, all}, key = {all_heads + H * size, size, all}, value = {all_heads + (H + K) * size, size, all};
    #pragma omp for schedule(static)
    for (int64_t n = 0; n < s->num_tokens; n++)
        for (int64_t h = 0; h < H + K; h++) NAME(prepare_head)(d, l, s, n, h >= H, all_heads + n * all + h * size);
    #pragma omp for schedule(static) nowait
    for (int64_t w = 0; w < s->num_written; w++) {
        const REAL *keys = all_heads + s->written[w] * all + H * size;
        for (int64_t k = 0; k < K; k++)
            NAME(keep)(d, cache->keys, cache->values, s->slots[w] * K + k, s->capacity, s->places[w], keys + k * size,
                       keys + (K + k) * size);
    }
    #pragma omp for schedule(static) nowait
    for (int64_t task = 0; task < (s->keeps_prefix ? s->num_shared * K : 0); task++) {
        const REAL *own = all_heads + task / K * all + (H + task % K) * size;
        NAME(keep)(d, cache->prefix_keys, cache->prefix_values, task % K, room, task / K, own, own + K * size);
    }
    const attention *plan = l->window ? s->near : s->plan;
    #pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < plan->num_blocks * K; task++) {
        NAME(block) block = NAME(open_block)(plan, task / K, task % K);
        NAME(attend_block)(plan, &block, &query, &key, &value, attended, logsumexp, workspace);
    }
}

/* A step */

/* Where it works: what all threads share, and what each has of its own. */
typedef struct {
    REAL *hidden, *picked, *heads, *attended, *logsumexp, *own;
    void *input, *activation;
    int64_t own_bytes, normed_at, bytes; /* of each thread's own all, and where in it the norms of few rows are */
} NAME(step_workspace);

static NAME(step_workspace) NAME(lay_out_step)(const decoder *d, const decode_step *s, char *start)
{
    int64_t N = s->num_tokens, M = s->num_read, H = d->num_heads, K = d->num_key_heads, input = NAME(bytes_of)(INPUT_KIND(d->kind));
    int64_t rows = most(N, M); /* a prompt that several rows have is read for each */
    int64_t attends = s->plan ? NAME(workspace_bytes)(s->plan, 0) : NAME(slots_workspace)(d, s) * (int64_t)sizeof(REAL);
    if (s->near) attends = most(attends, NAME(workspace_bytes)(s->near, 0));
    char *at = start;
    NAME(step_workspace) w;
    w.hidden = take(&at, N * d->width, sizeof(REAL));
    w.picked = take(&at, s->plan ? M * d->width : 0, sizeof(REAL));
    w.heads = take(&at, N * (H + 2 * K) * d->size, sizeof(REAL));
    w.attended = take(&at, s->plan ? N * H * d->size : 0, sizeof(REAL));
    w.logsumexp = take(&at, s->plan ? N * H : 0, sizeof(REAL));
    w.input = take(&at, rows * most(d->width, H * d->size), input);
    w.activation = take(&at, rows * d->inner, input);
    w.own = (REAL *)at;
    w.own_bytes = most(attends, most(2 * BLOCK_ROWS * PANEL, d->width) * (int64_t)sizeof(REAL));
    w.normed_at = rounded_up(w.own_bytes, 64);
    w.own_bytes = w.normed_at + rounded_up(FEW_ROWS * d->width * (int64_t)sizeof(REAL), 64);
    w.bytes = (int64_t)((uintptr_t)at - (uintptr_t)start) + s->num_threads * w.own_bytes;
    return w;
}

static int64_t NAME(step_bytes)(const decoder *d, const decode_step *s) { return NAME(lay_out_step)(d, s, NULL).bytes; }

static void NAME(run_step)(const decoder *d, const decode_step *s)
{
    NAME(step_workspace) w = NAME(lay_out_step)(d, s, s->workspace);
    int64_t H = d->num_heads, K = d->num_key_heads, width = d->width, kind = d->kind, all_heads = H * d->size;
    #pragma omp parallel num_threads((int)s->num_threads)
    {
        REAL *own = (REAL *)((char *)w.own + omp_get_thread_num() * w.own_bytes), *hidden = w.hidden;
        void *own_normed = (char *)own + w.normed_at;
        const void *normed;
        int64_t num_rows = s->num_tokens;
        #pragma omp for schedule(static)
        for (int64_t n = 0; n < num_rows; n++)
            NAME(load)(hidden + n * width, d->embedding, s->token_ids[n] * width, width, width, kind);
        for (int64_t number = 0; number < d->num_layers; number++) {
            const decode_layer *l = d->layers + number;
            normed = NAME(norm_rows)(d, num_rows, hidden, l->norms[0], w.input, own_normed, own);
            NAME(project)(&l->heads, kind, num_rows, normed, w.heads, (H + 2 * K) * d->size, 0, own);
            if (s->plan) {
                int64_t is_last = number + 1 == d->num_layers;
                NAME(attend_trie)(d, l, s, s->caches + number, w.heads, w.attended, w.logsumexp, own);
                if (is_last) num_rows = s->num_read; /* nobody reads the others */
                #pragma omp for schedule(static)
                for (int64_t row = 0; row < num_rows; row++) {
                    int64_t from = is_last ? s->read[row] : row;
                    NAME(store)(w.input, row * all_heads, w.attended + from * all_heads, all_heads, 1, INPUT_KIND(kind));
                    if (is_last) memcpy(w.picked + row * width, hidden + from * width, width * sizeof *hidden);
                }
                if (is_last) hidden = w.picked;
            } else
                NAME(attend_slots)(d, l, s, s->caches + number, w.heads, w.input, own);
            NAME(project)(&l->output, kind, num_rows, w.input, hidden, width, 1, own);
            normed = NAME(norm_rows)(d, num_rows, hidden, l->norms[1], w.input, own_normed, own);
            NAME(project_gated)(l, kind, num_rows, normed, w.activation, own);
            NAME(project)(&l->down, kind, num_rows, w.activation, hidden, width, 1, own);
        }
        normed = NAME(norm_rows)(d, num_rows, hidden, d->norm, w.input, own_normed, own);
        NAME(project)(&d->head, kind, num_rows, normed, s->logits, d->head.size, 0, own);
    }
}

#undef MOST_ROWS
#undef BLOCK_ROWS
#undef STRETCH
#undef GROUP_QUERIES
#undef FEW_ROWS
#undef INPUT_KIND
