/* Token ids of a text, as the library tokenizers gives them: WordPiece of BERT, and byte-level BPE as of GPT-2, RoBERTa, Llama 3 and
 * Qwen 2. It reads the compact file that `edgekit embed` makes of tokenizer.json. C11, no dependency; texts are UTF-8, and what is none
 * is read as U+FFFD, as Python's errors="replace" reads it. One open tokenizer serves any number of threads. */
#ifndef EDGEKIT_TOKENIZER_H
#define EDGEKIT_TOKENIZER_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { EK_SECTIONS = 18 };

typedef struct {
  const unsigned char *at[EK_SECTIONS];
  uint32_t size[EK_SECTIONS]; /* bytes */
  uint32_t settings[10];
  uint32_t ascii[128]; /* the classes of the first characters */
} ek_tokenizer;

/* Opens the compact file's bytes, which must stay where they are. NULL, or what is wrong with them. */
const char *ek_open_tokenizer(ek_tokenizer *tokenizer, const void *bytes, size_t size);

/* The ids of a text of `length` bytes, cut and with the special tokens as tokenizer.json says; free(*ids). NULL, or what went wrong. */
const char *ek_tokenize(const ek_tokenizer *tokenizer, const char *text, size_t length, int64_t **ids, size_t *count);

/* Whether a text has a letter or a digit: one without is out of scope for a model that has such a label. */
int ek_says_something(const ek_tokenizer *tokenizer, const char *text, size_t length);

#ifdef __cplusplus
}
#endif
#endif
