/* A decoder layer of bfloat16 in one call each way, out of the parts of kernels.h and products.h:

     middle = hidden + attention(norm(hidden)),    mlp_input = norm(middle),
     output = middle + down(activation),           activation = silu(gate(mlp_input)) * up(mlp_input)

   (Vaswani et al. 2017; Touvron et al. 2023). Residual sums are taken before a result is rounded. Of the last layer few rows are
   read: only those go beyond attention, the others of its output are 0.

   Beside each linear layer there may be an adapter (LoRA, Hu et al. 2021): x W^T + b + s (x A^T) B^T. With t = s x A^T and
   u = s dy B, each scaled in float32 and rounded once,

     y = x W^T + b + t B^T,    dx = dy W + u A,    dA = u^T x,    dB = dy^T t,

   so the adapter is a second stretch of the depth of the products that are there anyway, and A and B are read as they are. */

enum { QUERY, KEY, VALUE, OUTPUT, GATE, UP, DOWN, NUM_LINEARS };

/* What a layer reads, and where it writes. Matrices are [rows, columns] one after the other, N = plan->num_nodes. */
typedef struct {
    const attention *plan;
    int64_t width, inner; /* features of hidden and output, and between gate and down */
    double epsilon[2], shift[2];
    const uint16_t *hidden, *cosines, *sines;                            /* [N, width]; [N, size of a head] */
    const uint16_t *norms[2], *weights[NUM_LINEARS], *biases[NUM_LINEARS]; /* a bias may be null */
    const uint16_t *lora_a[NUM_LINEARS], *lora_b[NUM_LINEARS]; /* [rank, what goes in], [what comes out, rank] */
    const nf4 *quantized[NUM_LINEARS];                         /* what a weight is, where that is null */
    int64_t ranks[NUM_LINEARS];                                /* even; 0 where there is no adapter */
    float scalings[NUM_LINEARS];
    const int64_t *read; /* [num_read] rows of the output that are read, rising; null for all N */
    int64_t num_read;
    char *kept, *workspace;
} layer;

/* Where its gradients go; null for what is not trained, and for `hidden` where nobody asks. */
typedef struct {
    uint16_t *hidden, *norms[2], *weights[NUM_LINEARS], *biases[NUM_LINEARS], *lora_a[NUM_LINEARS], *lora_b[NUM_LINEARS];
} layer_gradients;

/* What the forward keeps for the backward. */
typedef struct {
    uint16_t *attention_input, *query, *key, *value, *all_attended; /* N rows */
    float *logsumexp;
    uint16_t *attended, *residual, *middle, *mlp_input, *gate, *up, *activation; /* as many as are read */
    uint16_t *low[NUM_LINEARS]; /* t of each adapter, as many rows as its linear layer reads */
} kept_values;

/* Room for `rank` numbers beside each row that a linear layer reads. */
static void take_low(const layer *l, char **at, uint16_t **low)
{
    int64_t N = l->plan->num_nodes, M = l->read ? l->num_read : N;
    for (int64_t i = 0; i < NUM_LINEARS; i++) low[i] = take(at, (i < OUTPUT ? N : M) * l->ranks[i], 2);
}

static kept_values lay_out_kept(const layer *l, char **at)
{
    int64_t N = l->plan->num_nodes, M = l->read ? l->num_read : N;
    int64_t all_heads = l->plan->num_heads * l->plan->size, key_heads = l->plan->num_key_heads * l->plan->size;
    kept_values kept;
    kept.attention_input = take(at, N * l->width, 2);
    kept.query = take(at, N * all_heads, 2);
    kept.key = take(at, N * key_heads, 2);
    kept.value = take(at, N * key_heads, 2);
    kept.all_attended = take(at, N * all_heads, 2);
    kept.logsumexp = take(at, N * l->plan->num_heads, 4);
    kept.attended = l->read ? take(at, M * all_heads, 2) : kept.all_attended;
    kept.residual = l->read ? take(at, M * l->width, 2) : (uint16_t *)l->hidden;
    kept.middle = take(at, M * l->width, 2);
    kept.mlp_input = take(at, M * l->width, 2);
    kept.gate = take(at, M * l->inner, 2);
    kept.up = take(at, M * l->inner, 2);
    kept.activation = take(at, M * l->inner, 2);
    take_low(l, at, kept.low);
    return kept;
}

/* What only the backward needs, for as long as it runs. */
typedef struct {
    uint16_t *to_output, *to_gate, *to_up, *to_mlp_input, *to_middle, *to_attended; /* as many rows as are read */
    uint16_t *all_to_middle, *all_to_attended, *to_query, *to_key, *to_value, *to_attention_input; /* N rows */
    uint16_t *to_low[NUM_LINEARS]; /* u of each adapter */
    float *sums;
    char *workspace;
} passing_values;

static passing_values lay_out_passing(const layer *l, char **at)
{
    int64_t N = l->plan->num_nodes, M = l->read ? l->num_read : N;
    int64_t all_heads = l->plan->num_heads * l->plan->size, key_heads = l->plan->num_key_heads * l->plan->size;
    passing_values passing;
    passing.to_output = take(at, l->read ? M * l->width : 0, 2);
    passing.to_gate = take(at, M * l->inner, 2);
    passing.to_up = take(at, M * l->inner, 2);
    passing.to_mlp_input = take(at, M * l->width, 2);
    passing.to_middle = take(at, M * l->width, 2);
    passing.to_attended = take(at, M * all_heads, 2);
    passing.all_to_middle = l->read ? take(at, N * l->width, 2) : passing.to_middle;
    passing.all_to_attended = l->read ? take(at, N * all_heads, 2) : passing.to_attended;
    passing.to_query = take(at, N * all_heads, 2);
    passing.to_key = take(at, N * key_heads, 2);
    passing.to_value = take(at, N * key_heads, 2);
    passing.to_attention_input = take(at, N * l->width, 2);
    take_low(l, at, passing.to_low);
    passing.sums = take(at, most(l->plan->num_accumulators * N * 2 * key_heads, NORM_ACCUMULATORS * l->width), 4);
    passing.workspace = *at;
    return passing;
}

/* picked [num_read, width] = the rows that are read of `rows`. */
static void pick(const layer *l, int64_t width, const uint16_t *rows, uint16_t *picked)
{
    for (int64_t i = 0; i < l->num_read; i++) memcpy(picked + i * width, rows + l->read[i] * width, width * sizeof *rows);
}

/* rows [N, width] = `picked` where it came from, 0 elsewhere. */
static void put_back(const layer *l, int64_t width, const uint16_t *picked, uint16_t *rows)
{
    memset(rows, 0, l->plan->num_nodes * width * sizeof *rows);
    for (int64_t i = 0; i < l->num_read; i++) memcpy(rows + l->read[i] * width, picked + i * width, width * sizeof *rows);
}

/* Bytes of `kept`. */
EXPORT int64_t layer_kept_bytes(const layer *l)
{
    char *end = NULL;
    lay_out_kept(l, &end);
    return (int64_t)(uintptr_t)end;
}

/* Bytes of `workspace` for a forward or a backward. */
EXPORT int64_t layer_workspace_bytes(const layer *l, int64_t backward)
{
    int64_t N = l->plan->num_nodes, threads = l->plan->num_threads, deepest = most(l->inner, l->width), rank = 0;
    deepest = most(deepest, l->plan->num_heads * l->plan->size);
    for (int64_t i = 0; i < NUM_LINEARS; i++) rank = most(rank, l->ranks[i]);
    int64_t bytes = most(product_workspace_bytes(threads, N, deepest, rank), attention_workspace_bytes(l->plan, backward));
    bytes = most(bytes, threads * most(3 * l->width, 4 * l->plan->size) * (int64_t)sizeof(float));
    if (!backward) return bytes;
    char *end = NULL;
    lay_out_passing(l, &end);
    return (int64_t)(uintptr_t)end + most(bytes, outer_products_workspace_bytes(threads, N, most(deepest, rank)));
}

static heads heads_in(void *rows, int64_t num_heads, int64_t size) { return (heads){rows, size, num_heads * size}; }

/* The linear layers from number `first` on, one a factor, each with its adapter; t goes to `low`. */
static void multiply_linears(const layer *l, int64_t first, int64_t count, int64_t num_rows, int64_t depth, factor *factors,
                             uint16_t *const *low)
{
    int64_t num_adapters = 0;
    factor adapters[3];
    for (int64_t i = 0, number = first; i < count; i++, number++) {
        factors[i].quantized = l->quantized[number];
        if (!l->ranks[number]) continue;
        adapters[num_adapters++] = (factor){factors->left, l->lora_a[number], NULL, NULL, low[number], l->ranks[number],
                                            .scale = l->scalings + number};
        factors[i].low_left = low[number], factors[i].low_right = l->lora_b[number], factors[i].rank = l->ranks[number];
    }
    if (num_adapters) product(l->plan->num_threads, num_rows, depth, num_adapters, adapters, l->workspace);
    product(l->plan->num_threads, num_rows, depth, count, factors, l->workspace);
}

EXPORT void layer_forward(const layer *l, uint16_t *output)
{
    const attention *plan = l->plan;
    int64_t N = plan->num_nodes, M = l->read ? l->num_read : N, threads = plan->num_threads;
    int64_t size = plan->size, H = plan->num_heads, K = plan->num_key_heads;
    char *at = l->kept;
    kept_values kept = lay_out_kept(l, &at);
    heads query = heads_in(kept.query, H, size), key = heads_in(kept.key, K, size), value = heads_in(kept.value, K, size);
    const uint16_t *const *w = l->weights, *const *b = l->biases;

    norm_float(threads, BFLOAT16, N, l->width, l->epsilon[0], l->shift[0], l->hidden, l->norms[0], kept.attention_input,
               l->workspace);
    factor to_heads[] = {{kept.attention_input, w[QUERY], b[QUERY], NULL, kept.query, H * size},
                         {kept.attention_input, w[KEY], b[KEY], NULL, kept.key, K * size},
                         {kept.attention_input, w[VALUE], b[VALUE], NULL, kept.value, K * size}};
    multiply_linears(l, QUERY, 3, N, l->width, to_heads, kept.low);
    rotate_float(threads, BFLOAT16, N, H, size, &query, 0, l->cosines, l->sines, kept.query, l->workspace);
    rotate_float(threads, BFLOAT16, N, K, size, &key, 0, l->cosines, l->sines, kept.key, l->workspace);
    attend_float(plan, &query, &key, &value, kept.all_attended, kept.logsumexp, l->workspace);
    if (l->read) {
        pick(l, H * size, kept.all_attended, kept.attended);
        pick(l, l->width, l->hidden, kept.residual);
    }
    factor to_middle = {kept.attended, w[OUTPUT], b[OUTPUT], kept.residual, kept.middle, l->width};
    multiply_linears(l, OUTPUT, 1, M, H * size, &to_middle, kept.low);

    norm_float(threads, BFLOAT16, M, l->width, l->epsilon[1], l->shift[1], kept.middle, l->norms[1], kept.mlp_input,
               l->workspace);
    factor to_inner[] = {{kept.mlp_input, w[GATE], b[GATE], NULL, kept.gate, l->inner},
                         {kept.mlp_input, w[UP], b[UP], NULL, kept.up, l->inner}};
    multiply_linears(l, GATE, 2, M, l->width, to_inner, kept.low);
    gate_float(threads, BFLOAT16, M * l->inner, kept.gate, kept.up, kept.activation);
    uint16_t *rows = l->read ? kept.residual : output; /* the picked residual is not read again */
    factor to_output = {kept.activation, w[DOWN], b[DOWN], kept.middle, rows, l->width};
    multiply_linears(l, DOWN, 1, M, l->inner, &to_output, kept.low);
    if (l->read) put_back(l, l->width, rows, output);
}

/* sums [size] = the rows [num_rows, size] added up. */
static void add_rows(int64_t num_threads, int64_t num_rows, int64_t size, const uint16_t *rows, uint16_t *sums)
{
    #pragma omp parallel for num_threads(num_threads) schedule(static)
    for (int64_t column = 0; column < size; column += PANEL_WIDTH) {
        int64_t width = least(PANEL_WIDTH, size - column);
        float sum[PANEL_WIDTH] = {0};
        for (int64_t row = 0; row < num_rows; row++)
            for (int64_t c = 0; c < width; c++) sum[c] += widened(rows[row * size + column + c]);
        for (int64_t c = 0; c < width; c++) sums[column + c] = narrowed(sum[c]);
    }
}

/* The linear layers from number `first` on backward, one a factor: u goes to `to_low`, the gradient [num_rows, depth] of what they
   read, unless nobody asks for it, to where the first factor says. */
static void multiply_linears_back(const layer *l, int64_t first, int64_t count, int64_t num_rows, int64_t depth, factor *factors,
                                  uint16_t *const *to_low, void *workspace)
{
    int64_t threads = l->plan->num_threads, largest = 0;
    for (int64_t i = 0, number = first; i < count; i++, number++) {
        largest = most(largest, factors[i].size);
        factors[i].quantized = l->quantized[number];
        if (!l->ranks[number]) continue;
        const factor adapter = {factors[i].left, l->lora_b[number], NULL, NULL, to_low[number], factors[i].size,
                                .scale = l->scalings + number};
        sum_of_products(threads, num_rows, l->ranks[number], factors[i].size, 1, &adapter, workspace);
        factors[i].low_left = to_low[number], factors[i].low_right = l->lora_a[number], factors[i].rank = l->ranks[number];
    }
    if (factors->out) sum_of_products(threads, num_rows, depth, largest, count, factors, workspace);
}

/* Of the linear layers from number `first` on, which read the same rows [num_rows, depth] and have been gone through backward:
   gradients of what is trained of them, from the gradients of what came out and t of their adapters. */
static void learn(const layer *l, const layer_gradients *to, int64_t first, int64_t count, int64_t num_rows, const uint16_t *rows,
                  int64_t depth, const factor *upstreams, uint16_t *const *low, void *workspace)
{
    int64_t threads = l->plan->num_threads, num_trained = 0;
    factor factors[6];
    for (int64_t i = 0, number = first; i < count; i++, number++) {
        const factor *up = upstreams + i;
        if (to->weights[number])
            factors[num_trained++] = (factor){up->left, rows, NULL, NULL, to->weights[number], up->size};
        if (to->lora_a[number])
            factors[num_trained++] = (factor){up->low_left, rows, NULL, NULL, to->lora_a[number], up->rank};
        if (to->lora_b[number]) {
            const factor of_b = {up->left, low[number], NULL, NULL, to->lora_b[number], up->size};
            outer_products(threads, num_rows, up->rank, 1, &of_b, workspace);
        }
        if (to->biases[number]) add_rows(threads, num_rows, up->size, up->left, to->biases[number]);
    }
    if (num_trained) outer_products(threads, num_rows, depth, num_trained, factors, workspace);
}

/* Whether anybody asks for a gradient of what went into query, key and value, or of one of these. */
static int goes_below_attention(const layer_gradients *to)
{
    int wanted = to->hidden || to->norms[0];
    for (int64_t i = QUERY; i < OUTPUT; i++)
        wanted = wanted || to->weights[i] || to->biases[i] || to->lora_a[i] || to->lora_b[i];
    return wanted;
}

EXPORT void layer_backward(const layer *l, const uint16_t *to_output, const layer_gradients *to)
{
    const attention *plan = l->plan;
    int64_t N = plan->num_nodes, M = l->read ? l->num_read : N, threads = plan->num_threads;
    int64_t size = plan->size, H = plan->num_heads, K = plan->num_key_heads;
    char *at = l->kept, *passing_at = l->workspace;
    kept_values kept = lay_out_kept(l, &at);
    passing_values passing = lay_out_passing(l, &passing_at);
    heads query = heads_in(kept.query, H, size), key = heads_in(kept.key, K, size), value = heads_in(kept.value, K, size);
    const uint16_t *const *w = l->weights;
    void *workspace = passing.workspace;

    if (l->read) {
        pick(l, l->width, to_output, passing.to_output);
        to_output = passing.to_output;
    }
    uint16_t *to_activation = passing.to_gate; /* which may be what its gradient is written over */
    factor of_down = {to_output, w[DOWN], NULL, NULL, to_activation, l->width};
    multiply_linears_back(l, DOWN, 1, M, l->inner, &of_down, passing.to_low, workspace);
    learn(l, to, DOWN, 1, M, kept.activation, l->inner, &of_down, kept.low, workspace);
    gate_backward_float(threads, BFLOAT16, M * l->inner, kept.gate, kept.up, to_activation, passing.to_gate, passing.to_up);
    factor of_inner[] = {{passing.to_gate, w[GATE], NULL, NULL, passing.to_mlp_input, l->inner},
                         {passing.to_up, w[UP], NULL, NULL, NULL, l->inner}};
    multiply_linears_back(l, GATE, 2, M, l->width, of_inner, passing.to_low, workspace);
    learn(l, to, GATE, 2, M, kept.mlp_input, l->width, of_inner, kept.low, workspace);
    norm_backward_float(threads, BFLOAT16, M, l->width, l->epsilon[1], l->shift[1], kept.middle, l->norms[1],
                        passing.to_mlp_input, to_output, passing.to_middle, to->norms[1], passing.sums, workspace);

    factor of_output = {passing.to_middle, w[OUTPUT], NULL, NULL, passing.to_attended, l->width};
    multiply_linears_back(l, OUTPUT, 1, M, H * size, &of_output, passing.to_low, workspace);
    learn(l, to, OUTPUT, 1, M, kept.attended, H * size, &of_output, kept.low, workspace);
    if (!goes_below_attention(to)) return;
    if (l->read) {
        put_back(l, l->width, passing.to_middle, passing.all_to_middle);
        put_back(l, H * size, passing.to_attended, passing.all_to_attended);
    }
    heads to_attended = heads_in(passing.all_to_attended, H, size);
    heads to_query = heads_in(passing.to_query, H, size), to_key = heads_in(passing.to_key, K, size);
    attend_backward_float(plan, &query, &key, &value, kept.all_attended, kept.logsumexp, &to_attended, passing.to_query,
                          passing.to_key, passing.to_value, passing.sums, workspace);
    rotate_float(threads, BFLOAT16, N, H, size, &to_query, 1, l->cosines, l->sines, passing.to_query, workspace);
    rotate_float(threads, BFLOAT16, N, K, size, &to_key, 1, l->cosines, l->sines, passing.to_key, workspace);
    uint16_t *to_input = to->hidden || to->norms[0] ? passing.to_attention_input : NULL;
    factor of_heads[] = {{passing.to_query, w[QUERY], NULL, NULL, to_input, H * size},
                         {passing.to_key, w[KEY], NULL, NULL, NULL, K * size},
                         {passing.to_value, w[VALUE], NULL, NULL, NULL, K * size}};
    multiply_linears_back(l, QUERY, 3, N, l->width, of_heads, passing.to_low, workspace);
    learn(l, to, QUERY, 3, N, kept.attention_input, l->width, of_heads, kept.low, workspace);
    if (to_input)
        norm_backward_float(threads, BFLOAT16, N, l->width, l->epsilon[0], l->shift[0], l->hidden, l->norms[0], to_input,
                            passing.all_to_middle, to->hidden ? to->hidden : to_input, to->norms[0], passing.sums, workspace);
}
