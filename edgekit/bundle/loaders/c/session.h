/* From a text to a model's numbers: the tokenizer, and onnxruntime with the options that were verified. */
#ifndef EDGEKIT_SESSION_H
#define EDGEKIT_SESSION_H

#include "checks.h"

typedef struct ek_session ek_session;

/* The folder's tokenizer and model; NULL, and what is wrong, of a runtime that is too old for the bundle, too. */
ek_session *ek_open_session(const ek_bundle *bundle, const char *folder, ek_error *error);

/* The model's raw output: as many numbers as there are labels, or as an embedding has, until the next text; NULL, and what is wrong. */
const float *ek_run(ek_session *session, const char *text, const char *prompt, ek_error *error);

/* Whether a text has a letter or a digit. */
int ek_session_says(const ek_session *session, const char *text);

void ek_close_session(ek_session *session);

#endif
