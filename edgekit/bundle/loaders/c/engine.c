#include "engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The version of onnxruntime's table of functions: all that are called here are in it, and in every later one. */
enum { EK_ORT_API = 11 };

#define TRY(call) EK_TRY(e, call)

int ek_done(const ek_engine *e, OrtStatus *status, ek_error *error) {
  if (!status) return 1;
  const char *why = e->ort->GetErrorMessage(status);
  ek_fail(error, "onnxruntime: %.*s", (int)strcspn(why, "\n"), why);
  e->ort->ReleaseStatus(status);
  return 0;
}

static int open_words(ek_engine *e, const ek_bundle *bundle, const char *folder, ek_error *error) {
  size_t size = 0;
  e->words = ek_read(folder, bundle->tokenizer, &size, error);
  const char *wrong = e->words ? ek_open_tokenizer(&e->tokenizer, e->words, size) : NULL;
  return e->words && (!wrong || ek_fail(error, "%s", wrong));
}

static int open_model(ek_engine *e, const ek_bundle *bundle, const char *folder, ek_error *error) {
  OrtSessionOptions *options = NULL;
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", folder, bundle->model);
  int fine = TRY(CreateEnv(ORT_LOGGING_LEVEL_FATAL, "edgekit", &e->env)) && TRY(GetAllocatorWithDefaultOptions(&e->allocator)) &&
             TRY(CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &e->memory)) && TRY(CreateSessionOptions(&options)) &&
             TRY(SetIntraOpNumThreads(options, bundle->threads));
  for (size_t at = 0; fine && at < bundle->entry_count; ++at) fine = TRY(AddSessionConfigEntry(options, bundle->entries[at].name, bundle->entries[at].value));
  OrtStatus *refused = fine ? e->ort->CreateSession(e->env, path, options, &e->session) : NULL;
  if (refused) {
    fine = ek_fail_open(error, path, e->ort->GetErrorMessage(refused), "onnxruntime");
    e->ort->ReleaseStatus(refused);
  }
  if (options) e->ort->ReleaseSessionOptions(options);
  return fine;
}

int ek_open_engine(ek_engine *e, const ek_bundle *bundle, const char *folder, ek_error *error) {
  const OrtApiBase *base = OrtGetApiBase();
  if (!ek_check_version(bundle, base->GetVersionString(), error)) return 0;
  e->ort = base->GetApi(EK_ORT_API);
  if (!e->ort) return ek_fail(error, "onnxruntime %s has not the functions of 1.%d: link a newer one", base->GetVersionString(), EK_ORT_API);
  return open_words(e, bundle, folder, error) && open_model(e, bundle, folder, error);
}

void ek_close_engine(ek_engine *e) {
  if (e->session) e->ort->ReleaseSession(e->session);
  if (e->memory) e->ort->ReleaseMemoryInfo(e->memory);
  if (e->env) e->ort->ReleaseEnv(e->env);
  free(e->words);
}
