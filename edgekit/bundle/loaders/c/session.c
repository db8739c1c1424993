#include "session.h"

#include <onnxruntime_c_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tokenizer.h"

/* The version of onnxruntime's table of functions: all that are called here are in it, and in every later one. */
enum { EK_ORT_API = 11 };

struct ek_session {
  const ek_bundle *bundle;
  const OrtApi *ort;
  OrtEnv *env;
  OrtSession *session;
  OrtMemoryInfo *memory;
  OrtAllocator *allocator;
  char *inputs[3];
  size_t input_count;
  ek_tokenizer tokenizer;
  void *words; /* the tokenizer's file */
  float *output;
  size_t width; /* of it */
};

static int done(const OrtApi *ort, OrtStatus *status, ek_error *error) {
  if (!status) return 1;
  const char *why = ort->GetErrorMessage(status);
  ek_fail(error, "onnxruntime: %.*s", (int)strcspn(why, "\n"), why);
  ort->ReleaseStatus(status);
  return 0;
}

#define TRY(call) (done(m->ort, m->ort->call, error))

static int open_words(ek_session *m, const char *folder, ek_error *error) {
  size_t size = 0;
  m->words = ek_read(folder, m->bundle->tokenizer, &size, error);
  const char *wrong = m->words ? ek_open_tokenizer(&m->tokenizer, m->words, size) : NULL;
  return m->words && (!wrong || ek_fail(error, "%s", wrong));
}

static int open_model(ek_session *m, const char *folder, ek_error *error) {
  const ek_bundle *bundle = m->bundle;
  OrtSessionOptions *options = NULL;
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", folder, bundle->model);
  int fine = TRY(CreateEnv(ORT_LOGGING_LEVEL_FATAL, "edgekit", &m->env)) && TRY(GetAllocatorWithDefaultOptions(&m->allocator)) &&
             TRY(CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &m->memory)) && TRY(CreateSessionOptions(&options)) &&
             TRY(SetIntraOpNumThreads(options, bundle->threads));
  for (size_t at = 0; fine && at < bundle->entry_count; ++at) fine = TRY(AddSessionConfigEntry(options, bundle->entries[at].name, bundle->entries[at].value));
  OrtStatus *refused = fine ? m->ort->CreateSession(m->env, path, options, &m->session) : NULL;
  if (refused) {
    fine = ek_fail_open(error, path, m->ort->GetErrorMessage(refused), "onnxruntime");
    m->ort->ReleaseStatus(refused);
  }
  fine = fine && TRY(SessionGetInputCount(m->session, &m->input_count));
  if (options) m->ort->ReleaseSessionOptions(options);
  if (fine && m->input_count > 3) fine = ek_fail(error, "the model has %zu inputs: it is not the one that was verified", m->input_count);
  for (size_t at = 0; fine && at < m->input_count; ++at) fine = TRY(SessionGetInputName(m->session, at, m->allocator, &m->inputs[at]));
  return fine;
}

ek_session *ek_open_session(const ek_bundle *bundle, const char *folder, ek_error *error) {
  const OrtApiBase *base = OrtGetApiBase();
  if (!ek_check_version(bundle, base->GetVersionString(), error)) return NULL;
  ek_session *m = calloc(1, sizeof *m);
  if (!m) return ek_fail(error, "no memory"), NULL;
  m->bundle = bundle;
  m->width = bundle->width ? bundle->width : bundle->label_count;
  m->output = calloc(m->width, sizeof *m->output);
  m->ort = base->GetApi(EK_ORT_API);
  if (!m->output) ek_fail(error, "no memory");
  else if (!m->ort) ek_fail(error, "onnxruntime %s has not the functions of 1.%d: link a newer one", base->GetVersionString(), EK_ORT_API);
  else if (open_words(m, folder, error) && open_model(m, folder, error)) return m;
  ek_close_session(m);
  return NULL;
}

static int run(ek_session *m, int64_t *rows, size_t count, ek_error *error) {
  OrtValue *values[3] = {NULL}, *found = NULL;
  OrtTensorTypeAndShapeInfo *shape = NULL;
  int64_t sizes[] = {1, (int64_t)count};
  char *name = NULL;
  float *numbers = NULL;
  size_t got = 0;
  ONNXTensorElementDataType kind = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  int fine = 1;
  for (size_t at = 0; fine && at < m->input_count; ++at) {
    size_t of = strcmp(m->inputs[at], "attention_mask") == 0 ? 1 : strcmp(m->inputs[at], "token_type_ids") == 0 ? 2 : 0;
    int64_t *row = rows + of * count;
    fine = TRY(CreateTensorWithDataAsOrtValue(m->memory, row, count * sizeof *row, sizes, 2, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, &values[at]));
  }
  fine = fine && TRY(SessionGetOutputName(m->session, 0, m->allocator, &name)) &&
         TRY(Run(m->session, NULL, (const char *const *)m->inputs, (const OrtValue *const *)values, m->input_count, (const char *const *)&name, 1, &found)) &&
         TRY(GetTensorTypeAndShape(found, &shape)) && TRY(GetTensorShapeElementCount(shape, &got)) && TRY(GetTensorElementType(shape, &kind)) &&
         TRY(GetTensorMutableData(found, (void **)&numbers));
  if (fine && (got != m->width || kind != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT)) fine = ek_fail(error, "the model gives %zu numbers, not %zu of float32", got, m->width);
  if (fine) memcpy(m->output, numbers, m->width * sizeof *numbers);
  if (name) fine = TRY(AllocatorFree(m->allocator, name)) && fine;
  if (shape) m->ort->ReleaseTensorTypeAndShapeInfo(shape);
  if (found) m->ort->ReleaseValue(found);
  for (size_t at = 0; at < m->input_count; ++at)
    if (values[at]) m->ort->ReleaseValue(values[at]);
  return fine;
}

const float *ek_run(ek_session *m, const char *text, const char *prompt, ek_error *error) {
  size_t length = strlen(text), count = 0;
  int64_t *ids = NULL;
  char *whole = ek_prompted(m->bundle, prompt, text, &length, error);
  const char *wrong = whole ? ek_tokenize(&m->tokenizer, whole, length, &ids, &count) : NULL;
  size_t all = count ? count : 1; /* a text without tokens is one of padding */
  int64_t *rows = whole && !wrong ? calloc(3 * all, sizeof *rows) : NULL;
  if (wrong) ek_fail(error, "%s", wrong);
  else if (whole && !rows) ek_fail(error, "no memory for %zu tokens", all);
  for (size_t at = 0; rows && at < all; ++at) {
    rows[at] = count ? ids[at] : m->bundle->pad_id;
    rows[all + at] = 1;
  }
  int fine = rows && run(m, rows, all, error);
  free(rows);
  free(ids);
  free(whole);
  return fine ? m->output : NULL;
}

int ek_session_says(const ek_session *m, const char *text) { return ek_says_something(&m->tokenizer, text, strlen(text)); }

void ek_close_session(ek_session *m) {
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
