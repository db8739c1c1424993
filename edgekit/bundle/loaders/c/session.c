#include "session.h"

#include <stdlib.h>
#include <string.h>

#include "engine.h"

struct ek_session {
  const ek_bundle *bundle;
  ek_engine engine;
  char *inputs[3];
  size_t input_count;
  float *output;
  size_t width; /* of it */
};

#define TRY(call) EK_TRY(&m->engine, call)

static int name_inputs(ek_session *m, ek_error *error) {
  if (!TRY(SessionGetInputCount(m->engine.session, &m->input_count))) return 0;
  if (m->input_count > 3) return ek_fail(error, "the model has %zu inputs: it is not the one that was verified", m->input_count);
  for (size_t at = 0; at < m->input_count; ++at)
    if (!TRY(SessionGetInputName(m->engine.session, at, m->engine.allocator, &m->inputs[at]))) return 0;
  return 1;
}

ek_session *ek_open_session(const ek_bundle *bundle, const char *folder, ek_error *error) {
  ek_session *m = calloc(1, sizeof *m);
  if (!m) return ek_fail(error, "no memory"), NULL;
  m->bundle = bundle;
  m->width = bundle->width ? bundle->width : bundle->label_count;
  m->output = calloc(m->width, sizeof *m->output);
  if (!m->output) ek_fail(error, "no memory");
  else if (ek_open_engine(&m->engine, bundle, folder, error) && name_inputs(m, error)) return m;
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
    fine = TRY(CreateTensorWithDataAsOrtValue(m->engine.memory, row, count * sizeof *row, sizes, 2, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, &values[at]));
  }
  fine = fine && TRY(SessionGetOutputName(m->engine.session, 0, m->engine.allocator, &name)) &&
         TRY(Run(m->engine.session, NULL, (const char *const *)m->inputs, (const OrtValue *const *)values, m->input_count, (const char *const *)&name, 1, &found)) &&
         TRY(GetTensorTypeAndShape(found, &shape)) && TRY(GetTensorShapeElementCount(shape, &got)) && TRY(GetTensorElementType(shape, &kind)) &&
         TRY(GetTensorMutableData(found, (void **)&numbers));
  if (fine && (got != m->width || kind != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT)) fine = ek_fail(error, "the model gives %zu numbers, not %zu of float32", got, m->width);
  if (fine) memcpy(m->output, numbers, m->width * sizeof *numbers);
  if (name) fine = TRY(AllocatorFree(m->engine.allocator, name)) && fine;
  if (shape) m->engine.ort->ReleaseTensorTypeAndShapeInfo(shape);
  if (found) m->engine.ort->ReleaseValue(found);
  for (size_t at = 0; at < m->input_count; ++at)
    if (values[at]) m->engine.ort->ReleaseValue(values[at]);
  return fine;
}

const float *ek_run(ek_session *m, const char *text, const char *prompt, ek_error *error) {
  size_t length = strlen(text), count = 0;
  int64_t *ids = NULL;
  char *whole = ek_prompted(m->bundle, prompt, text, &length, error);
  const char *wrong = whole ? ek_tokenize(&m->engine.tokenizer, whole, length, &ids, &count) : NULL;
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

int ek_session_says(const ek_session *m, const char *text) { return ek_says_something(&m->engine.tokenizer, text, strlen(text)); }

void ek_close_session(ek_session *m) {
  if (!m) return;
  ek_error ignored, *error = &ignored;
  for (size_t at = 0; m->engine.ort && at < 3; ++at)
    if (m->inputs[at]) (void)TRY(AllocatorFree(m->engine.allocator, m->inputs[at]));
  ek_close_engine(&m->engine);
  free(m->output);
  free(m);
}
