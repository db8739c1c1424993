/* `generate.h` over onnxruntime: the caches of keys and values, which it reads and writes in place, and the tokenizer in C. */
#include "generate.h"

#include <stdlib.h>
#include <string.h>

#include "engine.h"

/* Tokens of a text that are read at once, as they were when the model was verified, and the number that caches have room for a
 * multiple of. */
enum { EK_PIECE = 512, EK_ROOM = 256 };

typedef struct {
  char *past, *present; /* the names of input and output */
  int64_t shape[4];     /* 1, heads, room, width */
  size_t size;          /* bytes of a number */
  ONNXTensorElementDataType kind;
  char *numbers;
  OrtValue *value;
} Cache;

struct ek_writer {
  const ek_bundle *bundle;
  ek_engine engine;
  uint32_t *pieces;    /* the file of what tokens are as text: how many there are, where each begins and the last ends, and the bytes */
  size_t pieces_size;
  char *logits;        /* the first output's name */
  Cache *caches;
  size_t cache_count;
  const char **names;  /* of inputs, then of outputs */
  OrtValue **values;
};

#define TRY(call) EK_TRY(&w->engine, call)

/* --- The model and its caches ------------------------------------------------------------------------------------------------------- */

static int add_input(ek_writer *w, size_t place, ek_error *error) {
  OrtTypeInfo *info = NULL;
  const OrtTensorTypeAndShapeInfo *shape = NULL;
  Cache *cache = &w->caches[w->cache_count];
  size_t sides = 0;
  int fine = TRY(SessionGetInputTypeInfo(w->engine.session, place, &info)) && TRY(CastTypeInfoToTensorInfo(info, &shape)) && TRY(GetDimensionsCount(shape, &sides));
  if (fine && sides == 4) {
    fine = TRY(GetDimensions(shape, cache->shape, 4)) && TRY(GetTensorElementType(shape, &cache->kind)) &&
           TRY(SessionGetInputName(w->engine.session, place, w->engine.allocator, &cache->past)) &&
           TRY(SessionGetOutputName(w->engine.session, ++w->cache_count, w->engine.allocator, &cache->present));
    cache->size = cache->kind == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 ? 2 : 4;
    cache->shape[0] = 1;
    cache->shape[2] = 0;
  }
  if (info) w->engine.ort->ReleaseTypeInfo(info);
  return fine;
}

static int open_caches(ek_writer *w, ek_error *error) {
  size_t inputs = 0;
  int fine = TRY(SessionGetInputCount(w->engine.session, &inputs)) && TRY(SessionGetOutputName(w->engine.session, 0, w->engine.allocator, &w->logits));
  w->caches = calloc(inputs + 1, sizeof *w->caches);
  w->names = calloc(2 * inputs + 4, sizeof *w->names);
  w->values = calloc(2 * inputs + 4, sizeof *w->values);
  if (fine && (!w->caches || !w->names || !w->values)) fine = ek_fail(error, "no memory");
  for (size_t at = 0; fine && at < inputs; ++at) fine = add_input(w, at, error);
  return fine;
}

/* Makes the caches hold so many tokens, with what they hold now. */
static int resize(ek_writer *w, size_t room, ek_error *error) {
  for (size_t at = 0; at < w->cache_count; ++at) {
    Cache *cache = &w->caches[at];
    size_t row = (size_t)cache->shape[3] * cache->size, heads = (size_t)cache->shape[1], had = (size_t)cache->shape[2];
    char *made = calloc(heads * room, row), *old = cache->numbers;
    if (!made) return ek_fail(error, "no memory for %zu tokens", room);
    for (size_t head = 0; old && head < heads; ++head) memcpy(made + head * room * row, old + head * had * row, (had < room ? had : room) * row);
    if (cache->value) w->engine.ort->ReleaseValue(cache->value);
    free(old);
    cache->value = NULL;
    cache->numbers = made;
    cache->shape[2] = (int64_t)room;
    if (!TRY(CreateTensorWithDataAsOrtValue(w->engine.memory, made, heads * room * row, cache->shape, 4, cache->kind, &cache->value))) return 0;
  }
  return 1;
}

/* The likeliest token behind the first `count` ids, of which the caches hold all before `from`; -1 where it fails. */
static int64_t feed(ek_writer *w, int64_t *ids, size_t from, size_t count, ek_error *error) {
  size_t caches = w->cache_count, got = 0;
  int64_t one = 1, fresh[] = {1, (int64_t)(count - from)}, all[] = {1, (int64_t)count}, best = -1;
  int64_t *ones = malloc(count * sizeof *ones);
  OrtTensorTypeAndShapeInfo *shape = NULL;
  OrtValue **given = w->values, **found = given + 3 + caches;
  float *scores = NULL;
  if (!ones) return ek_fail(error, "no memory for %zu tokens", count), -1;
  for (size_t at = 0; at < count; ++at) ones[at] = 1;
  w->names[0] = "input_ids", w->names[1] = "attention_mask", w->names[2] = "num_logits_to_keep", w->names[3 + caches] = w->logits;
  given[0] = given[1] = given[2] = found[0] = NULL;
  for (size_t at = 0; at < caches; ++at) {
    w->names[3 + at] = w->caches[at].past, w->names[4 + caches + at] = w->caches[at].present;
    given[3 + at] = found[1 + at] = w->caches[at].value;
  }
  const ONNXTensorElementDataType whole = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
  int fine = TRY(CreateTensorWithDataAsOrtValue(w->engine.memory, ids + from, (count - from) * sizeof *ids, fresh, 2, whole, &given[0])) &&
             TRY(CreateTensorWithDataAsOrtValue(w->engine.memory, ones, count * sizeof *ones, all, 2, whole, &given[1])) &&
             TRY(CreateTensorWithDataAsOrtValue(w->engine.memory, &one, sizeof one, NULL, 0, whole, &given[2])) &&
             TRY(Run(w->engine.session, NULL, w->names, (const OrtValue *const *)given, 3 + caches, w->names + 3 + caches, 1 + caches, found)) &&
             TRY(GetTensorTypeAndShape(found[0], &shape)) && TRY(GetTensorShapeElementCount(shape, &got)) &&
             TRY(GetTensorMutableData(found[0], (void **)&scores));
  for (size_t at = 0; fine && at < got; ++at)
    if (best < 0 || scores[at] > scores[best]) best = (int64_t)at;
  if (shape) w->engine.ort->ReleaseTensorTypeAndShapeInfo(shape);
  if (found[0]) w->engine.ort->ReleaseValue(found[0]);
  for (size_t at = 0; at < 3; ++at)
    if (given[at]) w->engine.ort->ReleaseValue(given[at]);
  free(ones);
  return best;
}

typedef struct {
  ek_piece take; /* NULL: nobody ends it */
  void *to;
  int ended;
} Reader;

/* The same behind all ids; they are read in pieces, but a text that is longer than rope_switch in one: all its keys are rotated otherwise. */
static int64_t next_token(ek_writer *w, int64_t *ids, size_t fed, size_t count, Reader *reader, ek_error *error) {
  size_t turns = (size_t)w->bundle->rope_switch, step = count > turns ? count : EK_PIECE, context = (size_t)w->bundle->context;
  size_t room = (count + EK_ROOM - 1) / EK_ROOM * EK_ROOM;
  if (count > turns && fed <= turns) fed = 0;
  if (room > context) room = context;
  if ((!w->cache_count || w->caches[0].shape[2] != (int64_t)room) && !resize(w, room, error)) return -1;
  int64_t token = -1;
  for (size_t end; fed < count; fed = end) {
    if (reader->take && !reader->take(reader->to, "", 0)) return reader->ended = 1, -1;
    end = count - fed < step ? count : fed + step;
    if ((token = feed(w, ids, fed, end, error)) < 0) return -1;
  }
  return token;
}

/* --- Tokens and text ---------------------------------------------------------------------------------------------------------------- */

static int open_pieces(ek_writer *w, const char *folder, ek_error *error) {
  w->pieces = ek_read(folder, w->bundle->pieces, &w->pieces_size, error);
  if (!w->pieces) return 0;
  return (w->pieces_size >= 8 && (w->pieces[0] + 2ull) * 4 <= w->pieces_size) || ek_fail(error, "the file of the tokens' text is cut or damaged");
}

/* The bytes of a token; none of one that is not shown. */
static const char *piece_of(const ek_writer *w, int64_t token, size_t *length) {
  const uint32_t *begins = w->pieces + 1;
  const char *bytes = (const char *)(begins + w->pieces[0] + 1);
  *length = token < w->pieces[0] ? begins[token + 1] - begins[token] : 0;
  return bytes + (*length ? begins[token] : 0);
}

/* The tokens of a text, in room for all that fit the context. */
static int64_t *read_text(ek_writer *w, const char *text, size_t length, size_t *count, ek_error *error) {
  int64_t *ids = NULL, *roomy = NULL;
  size_t context = (size_t)w->bundle->context;
  const char *wrong = ek_tokenize(&w->engine.tokenizer, text, length, &ids, count);
  int fine = wrong ? ek_fail(error, "%s", wrong) : (*count > 0 && *count < context) ||
             ek_fail(error, "%zu tokens do not fit the context of %zu, of which one is for the answer", *count, context);
  if (fine && !(roomy = realloc(ids, context * sizeof *ids))) ek_fail(error, "no memory for %zu tokens", context);
  if (!roomy) free(ids);
  return roomy;
}

static int check_golden(ek_writer *w, const ek_golden *row, ek_error *error) {
  static const char *const remedy = "another engine, CPU or tokenizer computes something else than what was verified";
  size_t count = 0, same = 0;
  int64_t *ids = read_text(w, row->text, strlen(row->text), &count, error);
  if (!ids) return 0;
  /* A template's question is read without what the tokenizer puts around a text. */
  while (!w->bundle->chats && same < count && same < row->asked_count && ids[same] == row->asked[same]) ++same;
  int fine = w->bundle->chats || (same == count && same == row->asked_count) ||
             ek_fail(error, "\"%.60s\" gives %zu tokens, and the golden answer has %zu or others: %s", row->text, count, row->asked_count, remedy);
  fine = fine && (row->asked_count + row->token_count < (size_t)w->bundle->context || ek_fail(error, "a golden answer does not fit the context"));
  for (size_t at = 0; fine && at < row->asked_count; ++at) ids[at] = row->asked[at];
  count = row->asked_count;
  Reader nobody = {NULL, NULL, 0};
  for (size_t at = 0, fed = 0; fine && at < row->token_count; ++at, fed = count++) {
    ids[count] = next_token(w, ids, fed, count, &nobody, error);
    if (ids[count] == row->tokens[at]) continue;
    fine = ids[count] < 0 ? 0 : ek_fail(error, "behind \"%.60s\" comes token %d as number %zu, and the golden answer has %d: %s", row->text, (int)ids[count],
                                        at + 1, row->tokens[at], remedy);
  }
  free(ids);
  return fine;
}

ek_writer *ek_open_writer(const ek_bundle *b, const char *folder, ek_error *error) {
  if (!ek_check_files(b, folder, error)) return NULL;
  ek_writer *w = calloc(1, sizeof *w);
  if (!w) return ek_fail(error, "no memory"), NULL;
  w->bundle = b;
  int fine = ek_open_engine(&w->engine, b, folder, error) && open_pieces(w, folder, error) && open_caches(w, error);
  for (size_t at = 0; fine && at < b->golden_count; ++at) fine = check_golden(w, &b->golden[at], error);
  if (fine) return w;
  ek_close_writer(w);
  return NULL;
}

static int is_stop(const ek_bundle *b, int64_t token) {
  for (size_t at = 0; at < b->stop_count; ++at)
    if (b->stops[at] == token) return 1;
  return 0;
}

int ek_write(ek_writer *w, const char *said, size_t most, ek_piece take, void *to, ek_error *error) {
  size_t length = 0, count = 0, held = 0, fed = 0;
  char *question = ek_question(w->bundle, said, &length, error), *text = NULL;
  int64_t *ids = question ? read_text(w, question, length, &count, error) : NULL;
  free(question);
  if (!ids) return 0;
  size_t room = (size_t)w->bundle->context - count, left = most && most < room ? most : room;
  Reader reader = {take, to, 0};
  int fine = 1;
  for (; fine && left > 0; --left) {
    int64_t token = next_token(w, ids, fed, count, &reader, error);
    reader.take = NULL; /* it is told pieces from now on */
    if (token < 0) fine = reader.ended;
    if (token < 0 || is_stop(w->bundle, token)) break;
    fed = count;
    ids[count++] = token;
    const char *piece = piece_of(w, token, &length);
    char *longer = realloc(text, held + length + 1);
    if (!longer) fine = ek_fail(error, "no memory");
    if (!longer) break;
    text = longer;
    memcpy(text + held, piece, length);
    held += length;
    size_t whole = held - ek_begun(text, held);
    if (whole && !take(to, text, whole)) break;
    held -= whole;
    memmove(text, text + whole, held);
  }
  free(text);
  free(ids);
  return fine;
}

void ek_close_writer(ek_writer *w) {
  if (!w) return;
  ek_error ignored, *error = &ignored;
  for (size_t at = 0; at < w->cache_count; ++at) {
    Cache *cache = &w->caches[at];
    if (cache->value) w->engine.ort->ReleaseValue(cache->value);
    if (cache->past) (void)TRY(AllocatorFree(w->engine.allocator, cache->past));
    if (cache->present) (void)TRY(AllocatorFree(w->engine.allocator, cache->present));
    free(cache->numbers);
  }
  if (w->logits) (void)TRY(AllocatorFree(w->engine.allocator, w->logits));
  ek_close_engine(&w->engine);
  free(w->caches);
  free(w->names);
  free(w->values);
  free(w->pieces);
  free(w);
}
