#include "load.h"

#include <onnxruntime_c_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tokenizer.h"

/* The version of onnxruntime's table of functions: all that are called here are in it, and in every later one. */
enum { EK_ORT_API = 11 };

struct ek_model {
  const ek_bundle *bundle;
  const OrtApi *ort;
  OrtEnv *env;
  OrtSession *session;
  OrtMemoryInfo *memory;
  OrtAllocator *allocator;
  ek_tokenizer tokenizer;
  void *words;
  char *inputs[3];
  size_t input_count;
  float *output; /* as many numbers as there are labels, or as an embedding has */
};

static int done(const OrtApi *ort, OrtStatus *status, ek_error *error) {
  if (!status) return 1;
  ek_fail(error, "onnxruntime: %s", ort->GetErrorMessage(status));
  ort->ReleaseStatus(status);
  return 0;
}

#define TRY(call) (done(m->ort, m->ort->call, error))

static int run(ek_model *m, int64_t *ids, size_t count, ek_error *error) {
  OrtValue *values[3] = {NULL}, *found = NULL;
  OrtTensorTypeAndShapeInfo *shape = NULL;
  int64_t *rows[] = {ids, ids + count, ids + 2 * count}, sizes[] = {1, (int64_t)count};
  char *name = NULL;
  float *numbers = NULL;
  size_t width = m->bundle->width ? m->bundle->width : m->bundle->label_count, got = 0;
  ONNXTensorElementDataType kind = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  int fine = 1;
  for (size_t at = 0; fine && at < m->input_count; ++at) {
    int64_t *row = rows[strcmp(m->inputs[at], "attention_mask") == 0 ? 1 : strcmp(m->inputs[at], "token_type_ids") == 0 ? 2 : 0];
    fine = TRY(CreateTensorWithDataAsOrtValue(m->memory, row, count * sizeof *row, sizes, 2, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, &values[at]));
  }
  fine = fine && TRY(SessionGetOutputName(m->session, 0, m->allocator, &name)) &&
         TRY(Run(m->session, NULL, (const char *const *)m->inputs, (const OrtValue *const *)values, m->input_count, (const char *const *)&name, 1, &found)) &&
         TRY(GetTensorTypeAndShape(found, &shape)) && TRY(GetTensorShapeElementCount(shape, &got)) && TRY(GetTensorElementType(shape, &kind)) &&
         TRY(GetTensorMutableData(found, (void **)&numbers));
  if (fine && (got != width || kind != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT)) fine = ek_fail(error, "the model gives %zu numbers, not %zu of float32", got, width);
  if (fine) memcpy(m->output, numbers, width * sizeof *numbers);
  if (name) fine = TRY(AllocatorFree(m->allocator, name)) && fine;
  if (shape) m->ort->ReleaseTensorTypeAndShapeInfo(shape);
  if (found) m->ort->ReleaseValue(found);
  for (size_t at = 0; at < m->input_count; ++at)
    if (values[at]) m->ort->ReleaseValue(values[at]);
  return fine;
}

static int answer(ek_model *m, const char *text, const char *prompt, ek_error *error) {
  size_t length = strlen(text), count = 0;
  int64_t *ids = NULL, *rows = NULL;
  char *whole = ek_prompted(m->bundle, prompt, text, &length, error);
  const char *wrong = whole ? ek_tokenize(&m->tokenizer, whole, length, &ids, &count) : NULL;
  int fine = whole && (!wrong || ek_fail(error, "%s", wrong));
  if (fine) {
    size_t all = count ? count : 1; /* a text without tokens is one of padding */
    rows = calloc(3 * all, sizeof *rows);
    fine = rows || ek_fail(error, "no memory for %zu tokens", all);
    for (size_t at = 0; fine && at < all; ++at) {
      rows[at] = count ? ids[at] : m->bundle->pad_id;
      rows[all + at] = 1;
    }
    fine = fine && run(m, rows, all, error);
  }
  free(rows);
  free(ids);
  free(whole);
  return fine;
}

static int says_something(const ek_model *m, const char *text) { return ek_says_something(&m->tokenizer, text, strlen(text)); }

static int open_session(ek_model *m, const char *folder, ek_error *error) {
  const ek_bundle *bundle = m->bundle;
  OrtSessionOptions *options = NULL;
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", folder, bundle->model);
  int fine = TRY(CreateEnv(ORT_LOGGING_LEVEL_FATAL, "edgekit", &m->env)) && TRY(GetAllocatorWithDefaultOptions(&m->allocator)) &&
             TRY(CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &m->memory)) && TRY(CreateSessionOptions(&options)) &&
             TRY(SetIntraOpNumThreads(options, bundle->threads));
  for (size_t at = 0; fine && at < bundle->entry_count; ++at) fine = TRY(AddSessionConfigEntry(options, bundle->entries[at].name, bundle->entries[at].value));
  fine = fine && TRY(CreateSession(m->env, path, options, &m->session)) && TRY(SessionGetInputCount(m->session, &m->input_count));
  if (options) m->ort->ReleaseSessionOptions(options);
  if (fine && m->input_count > 3) fine = ek_fail(error, "the model has %zu inputs: it is not the one that was verified", m->input_count);
  for (size_t at = 0; fine && at < m->input_count; ++at) fine = TRY(SessionGetInputName(m->session, at, m->allocator, &m->inputs[at]));
  return fine;
}

ek_model *ek_open(const ek_bundle *bundle, const char *folder, ek_error *error) {
  const OrtApiBase *base = OrtGetApiBase();
  size_t size = 0;
  if (!ek_check_version(bundle, base->GetVersionString(), error) || !ek_check_files(bundle, folder, error)) return NULL;
  ek_model *m = calloc(1, sizeof *m);
  const size_t width = bundle->width ? bundle->width : bundle->label_count;
  int fine = m && (m->output = calloc(width, sizeof *m->output)) != NULL;
  if (!fine) ek_fail(error, "no memory");
  fine = fine && (m->bundle = bundle, m->ort = base->GetApi(EK_ORT_API)) != NULL;
  fine = fine && (m->words = ek_read(folder, bundle->tokenizer, &size, error)) != NULL;
  const char *wrong = fine ? ek_open_tokenizer(&m->tokenizer, m->words, size) : NULL;
  fine = fine && (!wrong || ek_fail(error, "%s", wrong)) && open_session(m, folder, error);
  for (size_t at = 0; fine && at < bundle->golden_count; ++at) {
    const ek_golden *row = &bundle->golden[at];
    fine = answer(m, row->text, NULL, error) && ek_check_golden(bundle, row, m->output, says_something(m, row->text), error);
  }
  if (fine) return m;
  ek_close(m);
  return NULL;
}

int ek_classify(ek_model *m, const char *text, ek_answer *out, ek_error *error) {
  if (m->bundle->width) return ek_fail(error, "this model embeds: ask ek_embed");
  if (!answer(m, text, NULL, error)) return 0;
  *out = ek_best(m->bundle, m->output, says_something(m, text));
  return 1;
}

int ek_embed(ek_model *m, const char *text, const char *prompt, float *embedding, ek_error *error) {
  if (!m->bundle->width) return ek_fail(error, "this model classifies: ask ek_classify");
  if (!answer(m, text, prompt, error)) return 0;
  memcpy(embedding, m->output, m->bundle->width * sizeof *embedding);
  return 1;
}

void ek_close(ek_model *m) {
  if (!m) return;
  ek_error ignored, *error = &ignored;
  for (size_t at = 0; m->ort && at < 3; ++at)
    if (m->inputs[at]) (void)TRY(AllocatorFree(m->allocator, m->inputs[at]));
  if (m->session) m->ort->ReleaseSession(m->session);
  if (m->memory) m->ort->ReleaseMemoryInfo(m->memory);
  if (m->env) m->ort->ReleaseEnv(m->env);
  free(m->words);
  free(m->output);
  free(m);
}
