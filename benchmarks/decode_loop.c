// The loop that Context.decode is measured against: one token at a time, the same model, the same settings.
// decode_loop MODEL N_STEPS N_ROUNDS prints the nanoseconds of one step in each round.

#include "llama.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static long long now_ns(void) {
    struct timespec t;
    timespec_get(&t, TIME_UTC);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void quiet(enum ggml_log_level level, const char * text, void * user_data) {
    (void) level;
    (void) text;
    (void) user_data;
}

int main(int argc, char ** argv) {
    if (argc != 4) {
        fprintf(stderr, "decode_loop MODEL N_STEPS N_ROUNDS\n");
        return 2;
    }
    const int n_steps = atoi(argv[2]), n_rounds = atoi(argv[3]);
    llama_log_set(quiet, NULL);
    llama_backend_init();
    struct llama_model_params mparams = llama_model_default_params();
    mparams.n_gpu_layers = 0;
    struct llama_model * model = llama_model_load_from_file(argv[1], mparams);
    struct llama_context_params cparams = llama_context_default_params();
    cparams.n_ctx           = 512;
    cparams.n_threads       = 1;
    cparams.n_threads_batch = 1;
    cparams.kv_unified      = true;
    struct llama_context * ctx = model ? llama_init_from_model(model, cparams) : NULL;
    if (!ctx || n_steps < 1 || n_steps > 512) {
        fprintf(stderr, "cannot run %s for %d steps\n", argv[1], n_steps);
        return 1;
    }
    struct llama_batch batch = llama_batch_init(1, 0, 1);
    float sum = 0;
    for (int round = 0; round < n_rounds; ++round) {
        llama_memory_clear(llama_get_memory(ctx), false);
        const long long start = now_ns();
        for (int pos = 0; pos < n_steps; ++pos) {
            batch.n_tokens     = 1;
            batch.token[0]     = 300 + pos % 100;
            batch.pos[0]       = pos;
            batch.n_seq_id[0]  = 1;
            batch.seq_id[0][0] = 0;
            batch.logits[0]    = 1;
            if (llama_decode(ctx, batch) != 0) {
                return 1;
            }
            sum += llama_get_logits_ith(ctx, 0)[7];
        }
        printf("%lld\n", (now_ns() - start) / n_steps);
    }
    fprintf(stderr, "%f\n", sum);
    llama_batch_free(batch);
    llama_free(ctx);
    llama_model_free(model);
    llama_backend_free();
    return 0;
}
