/* What the loaders in C share: what was verified of a bundle (bundle.c holds it), and the checks before the first answer. */
#ifndef EDGEKIT_CHECKS_H
#define EDGEKIT_CHECKS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
  const char *name, *value; /* a file and its sha256, a prompt by its name, a setting of a session */
} ek_pair;

typedef struct {
  const char *text; /* and what the model that was verified answers to it: */
  const char *label;
  double score;
  const float *embedding;
  const int32_t *asked, *tokens;
  size_t asked_count, token_count;
} ek_golden;

typedef struct {
  const char *model, *tokenizer, *runtime, *minimum;
  const ek_pair *files, *prompts, *entries;
  size_t file_count, prompt_count, entry_count;
  const char *const *labels;
  size_t label_count, width; /* width: numbers of an embedding; 0 of a classifier */
  const char *prompt;        /* what comes before each text */
  const char *out_of_scope;  /* NULL: every text has one of the labels */
  double threshold, tolerance;
  int64_t pad_id;
  int threads, threads_batch, context, batch, gpu_layers, flash_attention, kv_k, kv_v;
  int chats, trims;          /* trims: the template takes the blanks around a question away */
  const char *before, *behind; /* a question, as the model's chat template writes it */
  const char *pieces;          /* of a decoder in onnxruntime: the file of what tokens are as text, */
  const int32_t *stops;        /* the tokens that end an answer, */
  size_t stop_count;
  int rope_switch;             /* and the length above which all keys are rotated otherwise */
  const ek_golden *golden;
  size_t golden_count;
} ek_bundle;

typedef struct {
  const char *label;
  double score; /* 0 to 1 */
} ek_answer;

typedef struct {
  char text[600];
} ek_error;

/* What bundle.c holds. */
const ek_bundle *ek_verified(void);

/* Says what is wrong; always 0, for `return ek_fail(...)`. */
int ek_fail(ek_error *error, const char *form, ...);

/* The same of a file that a runtime does not open. why: what that says, of which the first line is taken. */
int ek_fail_open(ek_error *error, const char *path, const char *why, const char *runtime);

/* Whether each file in the folder has the content that was verified, and whether the runtime's version is not too old. */
int ek_check_files(const ek_bundle *bundle, const char *folder, ek_error *error);
int ek_check_version(const ek_bundle *bundle, const char *found, ek_error *error);

/* Whether the model answers a golden text as the one that was verified does; `output` is its raw output. */
int ek_check_golden(const ek_bundle *bundle, const ek_golden *row, const float *output, int says_something, ek_error *error);

/* The answer by a classifier's raw output, with the threshold; a text that says nothing is out of scope. */
ek_answer ek_best(const ek_bundle *bundle, const float *output, int says_something);

/* The text of a file in memory, with its size; free() it. */
void *ek_read(const char *folder, const char *name, size_t *size, ek_error *error);

/* A prompt before a text: by its name, "" for none, NULL for the model's own. free() it. */
char *ek_prompted(const ek_bundle *bundle, const char *prompt, const char *text, size_t *length, ek_error *error);

/* What a model that writes reads of what somebody says: as its chat template writes a question, or the text itself. free() it. */
char *ek_question(const ek_bundle *bundle, const char *said, size_t *length, ek_error *error);

/* How many bytes at a text's end begin a character of which more bytes are to come. */
size_t ek_begun(const char *text, size_t length);

#ifdef __cplusplus
}
#endif
#endif
