#include "generate.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if __has_include(<llama/llama.h>)
#include <llama/llama.h> /* where it is a framework of Apple's systems */
#else
#include <llama.h>
#endif

struct ek_writer {
  const ek_bundle *bundle;
  struct llama_model *model;
  struct llama_context *context;
  const struct llama_vocab *vocabulary;
};

/* The first of what llama.cpp says, without its end of line: it is the cause of what it says next. */
static void keep_error(enum ggml_log_level level, const char *text, void *first) {
  ek_error *kept = first;
  if (level == GGML_LOG_LEVEL_ERROR && !*kept->text) ek_fail(kept, "%.*s", (int)strcspn(text, "\n"), text);
}

static void be_silent(enum ggml_log_level level, const char *text, void *to) { (void)level, (void)text, (void)to; }

/* The likeliest token behind these, of which llama.cpp has read none yet; -1 where it fails. */
static llama_token next_token(ek_writer *w, llama_token *tokens, size_t count, ek_error *error) {
  for (size_t at = 0; at < count; at += (size_t)w->bundle->batch) {
    size_t part = count - at < (size_t)w->bundle->batch ? count - at : (size_t)w->bundle->batch;
    if (llama_decode(w->context, llama_batch_get_one(tokens + at, (int32_t)part)) != 0) {
      ek_fail(error, "llama.cpp cannot read %zu tokens", count);
      return -1;
    }
  }
  const float *scores = llama_get_logits_ith(w->context, -1);
  llama_token best = 0;
  for (llama_token at = 1, all = llama_vocab_n_tokens(w->vocabulary); scores && at < all; ++at)
    if (scores[at] > scores[best]) best = at;
  return scores ? best : -1;
}

static int fits(const ek_writer *w, size_t count, ek_error *error) {
  size_t room = llama_n_ctx(w->context);
  return (count > 0 && count < room) || ek_fail(error, "%zu tokens do not fit the context of %zu, of which one is for the answer", count, room);
}

/* As llama-cpp-python reads what is said: a template writes special tokens, and whoever continues a text writes none. */
static llama_token *read_text(ek_writer *w, const char *said, size_t *count, ek_error *error) {
  size_t length = 0;
  char *text = ek_question(w->bundle, said, &length, error);
  int fine = text && (length < INT32_MAX / 4 || ek_fail(error, "no memory for a text of %zu bytes", length));
  llama_token *tokens = fine ? malloc((length + 4) * sizeof *tokens) : NULL;
  int found = -1, chats = w->bundle->chats;
  if (tokens) found = llama_tokenize(w->vocabulary, text, (int32_t)length, tokens, (int32_t)length + 4, !chats, chats);
  free(text);
  *count = found > 0 ? (size_t)found : 0;
  if (found >= 0 && fits(w, *count, error)) return tokens;
  if (fine && found < 0) ek_fail(error, "no memory for a text of %zu bytes", length);
  free(tokens);
  return NULL;
}

static int check_golden(ek_writer *w, const ek_golden *row, ek_error *error) {
  llama_token *asked = malloc((row->asked_count + 1) * sizeof *asked), said = 0;
  int fine = asked ? fits(w, row->asked_count + row->token_count, error) : ek_fail(error, "no memory");
  if (fine) memcpy(asked, row->asked, row->asked_count * sizeof *asked);
  llama_memory_clear(llama_get_memory(w->context), true);
  for (size_t at = 0; fine && at < row->token_count; ++at) {
    said = at ? next_token(w, &said, 1, error) : next_token(w, asked, row->asked_count, error);
    if (said == row->tokens[at]) continue;
    fine = said < 0 ? 0 : ek_fail(error, "behind \"%.60s\" comes token %d as number %zu, and the golden answer has %d: another engine or CPU"
                                  " computes something else than what was verified", row->text, said, at + 1, row->tokens[at]);
  }
  free(asked);
  return fine;
}

ek_writer *ek_open_writer(const ek_bundle *b, const char *folder, ek_error *error) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", folder, b->model);
  if (!ek_check_version(b, ggml_version(), error) || !ek_check_files(b, folder, error)) return NULL;
  ek_writer *w = calloc(1, sizeof *w);
  if (!w) return ek_fail(error, "no memory"), NULL;
  w->bundle = b;
  ek_error cause = {""};
  llama_log_set(keep_error, &cause);
  ggml_backend_load_all();
  struct llama_model_params model = llama_model_default_params();
  model.n_gpu_layers = b->gpu_layers;
  w->model = llama_model_load_from_file(path, model);
  struct llama_context_params context = llama_context_default_params();
  context.n_ctx = (uint32_t)b->context;
  context.n_batch = (uint32_t)b->batch;
  context.n_ubatch = b->batch < 512 ? (uint32_t)b->batch : 512;
  if (b->threads) context.n_threads = b->threads; /* else llama.cpp's own number */
  if (b->threads_batch) context.n_threads_batch = b->threads_batch;
  context.type_k = (enum ggml_type)b->kv_k;
  context.type_v = (enum ggml_type)b->kv_v;
  context.flash_attn_type = b->flash_attention ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
  w->context = w->model ? llama_init_from_model(w->model, context) : NULL;
  llama_log_set(be_silent, NULL);
  w->vocabulary = w->context ? llama_model_get_vocab(w->model) : NULL;
  int fine = w->context || ek_fail_open(error, path, cause.text, "llama.cpp");
  for (size_t at = 0; fine && at < b->golden_count; ++at) fine = check_golden(w, &b->golden[at], error);
  if (fine) return w;
  ek_close_writer(w);
  return NULL;
}

typedef struct {
  ek_piece take;
  void *to;
  int ended;
} Reader;

/* What llama.cpp asks again and again while it reads a question: a true ends it. */
static bool is_ended(void *given) {
  Reader *reader = given;
  reader->ended = reader->ended || !reader->take(reader->to, "", 0);
  return reader->ended;
}

int ek_write(ek_writer *w, const char *said, size_t most, ek_piece take, void *to, ek_error *error) {
  size_t count = 0, held = 0;
  llama_token *tokens = read_text(w, said, &count, error), token = 0;
  if (!tokens) return 0;
  llama_memory_clear(llama_get_memory(w->context), true);
  size_t room = llama_n_ctx(w->context) - count, end = most && most < room ? most : room;
  Reader reader = {take, to, 0};
  char text[3 + 512];
  int fine = 1;
  for (size_t at = 0; at < end; ++at) {
    llama_set_abort_callback(w->context, at ? NULL : is_ended, &reader);
    token = at ? next_token(w, &token, 1, error) : next_token(w, tokens, count, error);
    fine = token >= 0 || reader.ended;
    if (token < 0 || llama_vocab_is_eog(w->vocabulary, token)) break;
    int length = llama_token_to_piece(w->vocabulary, token, text + held, (int32_t)(sizeof text - held), 0, false);
    size_t all = held + (length > 0 ? (size_t)length : 0), whole = all - ek_begun(text, all);
    if (whole && !take(to, text, whole)) break;
    held = all - whole;
    memmove(text, text + whole, held);
  }
  llama_set_abort_callback(w->context, NULL, NULL);
  free(tokens);
  return fine;
}

void ek_close_writer(ek_writer *w) {
  if (!w) return;
  if (w->context) llama_free(w->context);
  if (w->model) llama_model_free(w->model);
  free(w);
}
