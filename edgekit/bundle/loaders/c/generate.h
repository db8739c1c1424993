/* Answers from an edgekit bundle over llama.cpp, which reads the text itself (generate.c), or over onnxruntime (decode.c). Every function but
 * ek_close_writer gives 0 or NULL where it fails, and says why in `error`. */
#ifndef EDGEKIT_GENERATE_H
#define EDGEKIT_GENERATE_H

#include "checks.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ek_writer ek_writer;

/* Takes a piece of the answer: UTF-8 whose last character is whole, or no bytes, again and again while the question is read. 0 ends it. */
typedef int (*ek_piece)(void *to, const char *piece, size_t length);

/* Checks the folder's files, the runtime's version and the golden answers; for one thread at a time. */
ek_writer *ek_open_writer(const ek_bundle *bundle, const char *folder, ek_error *error);

/* The likeliest answer to a question (of a model that chats) or the likeliest text behind a text, until the model ends it. */
int ek_write(ek_writer *writer, const char *said, size_t most_tokens, ek_piece take, void *to, ek_error *error);

void ek_close_writer(ek_writer *writer);

#ifdef __cplusplus
}
#endif
#endif
