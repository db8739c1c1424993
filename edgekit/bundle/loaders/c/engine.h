/* onnxruntime with the options that were verified, and the tokenizer: what every loader of a model in ONNX opens. */
#ifndef EDGEKIT_ENGINE_H
#define EDGEKIT_ENGINE_H

#include <onnxruntime_c_api.h>

#include "checks.h"
#include "tokenizer.h"

typedef struct {
  const OrtApi *ort;
  OrtEnv *env;
  OrtSession *session;
  OrtMemoryInfo *memory;
  OrtAllocator *allocator;
  ek_tokenizer tokenizer;
  void *words; /* the tokenizer's file */
} ek_engine;

/* Opens the folder's tokenizer and model in an engine of zeros; 0, and what is wrong. `ek_close_engine` takes what was opened so far. */
int ek_open_engine(ek_engine *engine, const ek_bundle *bundle, const char *folder, ek_error *error);

/* Whether a call of onnxruntime's went well; else what it says is in `error`. EK_TRY(engine, Run(...)) makes the call. */
int ek_done(const ek_engine *engine, OrtStatus *status, ek_error *error);
#define EK_TRY(engine, call) (ek_done(engine, (engine)->ort->call, error))

void ek_close_engine(ek_engine *engine);

#endif
