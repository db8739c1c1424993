/* Answers from an edgekit bundle over onnxruntime. Every function but ek_close gives 0 or NULL where it fails, and says why in `error`. */
#ifndef EDGEKIT_LOAD_H
#define EDGEKIT_LOAD_H

#include "checks.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ek_model ek_model;

/* Checks the folder's files, onnxruntime's version and the golden answers; for one thread at a time. */
ek_model *ek_open(const ek_bundle *bundle, const char *folder, ek_error *error);

/* The label and its score; of an embedding model, the embedding: `width` numbers. prompt: by its name, "" for none, NULL the model's own. */
int ek_classify(ek_model *model, const char *text, ek_answer *answer, ek_error *error);
int ek_embed(ek_model *model, const char *text, const char *prompt, float *embedding, ek_error *error);

void ek_close(ek_model *model);

#ifdef __cplusplus
}
#endif
#endif
