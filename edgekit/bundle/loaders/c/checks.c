#include "checks.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int ek_fail(ek_error *error, const char *form, ...) {
  va_list values;
  va_start(values, form);
  vsnprintf(error->text, sizeof error->text, form, values);
  va_end(values);
  return 0;
}

int ek_fail_open(ek_error *error, const char *path, const char *why, const char *runtime) {
  int line = (int)strcspn(why, "\n");
  return ek_fail(error, "%.200s: cannot be opened (%.*s): install a newer %s, or copy it again", path, line < 250 ? line : 250, why, runtime);
}

/* --- SHA-256, FIPS 180-4 ------------------------------------------------------------------------------------------------------------ */

typedef struct {
  uint32_t state[8];
  unsigned char block[64];
  uint64_t length;
} Sha256;

static uint32_t turn(uint32_t word, int by) { return word >> by | word << (32 - by); }

static void mix(Sha256 *sha) {
  static const uint32_t k[64] = {
      0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be,
      0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa,
      0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85,
      0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3,
      0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f,
      0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
  uint32_t w[64], s[8];
  for (int at = 0; at < 16; ++at)
    w[at] = (uint32_t)sha->block[4 * at] << 24 | (uint32_t)sha->block[4 * at + 1] << 16 | (uint32_t)sha->block[4 * at + 2] << 8 | sha->block[4 * at + 3];
  for (int at = 16; at < 64; ++at) {
    uint32_t small = turn(w[at - 15], 7) ^ turn(w[at - 15], 18) ^ w[at - 15] >> 3;
    w[at] = w[at - 16] + small + w[at - 7] + (turn(w[at - 2], 17) ^ turn(w[at - 2], 19) ^ w[at - 2] >> 10);
  }
  memcpy(s, sha->state, sizeof s);
  for (int at = 0; at < 64; ++at) {
    uint32_t one = s[7] + (turn(s[4], 6) ^ turn(s[4], 11) ^ turn(s[4], 25)) + ((s[4] & s[5]) ^ (~s[4] & s[6])) + k[at] + w[at];
    uint32_t two = (turn(s[0], 2) ^ turn(s[0], 13) ^ turn(s[0], 22)) + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
    memmove(s + 1, s, 7 * sizeof *s);
    s[4] += one;
    s[0] = one + two;
  }
  for (int at = 0; at < 8; ++at) sha->state[at] += s[at];
}

static void update(Sha256 *sha, const unsigned char *bytes, size_t count) {
  while (count-- > 0) {
    sha->block[sha->length++ % 64] = *bytes++;
    if (sha->length % 64 == 0) mix(sha);
  }
}

static void finish(Sha256 *sha, char hex[65]) {
  uint64_t bits = sha->length * 8;
  unsigned char tail[8];
  update(sha, (const unsigned char *)"\x80", 1);
  while (sha->length % 64 != 56) update(sha, (const unsigned char *)"", 1);
  for (int at = 0; at < 8; ++at) tail[at] = (unsigned char)(bits >> (56 - 8 * at));
  update(sha, tail, 8);
  for (int at = 0; at < 8; ++at) snprintf(hex + 8 * at, 9, "%08x", sha->state[at]);
}

/* --- Files -------------------------------------------------------------------------------------------------------------------------- */

static FILE *opened(const char *folder, const char *name, ek_error *error) {
  char path[4096];
  errno = ENAMETOOLONG;
  FILE *file = (size_t)snprintf(path, sizeof path, "%s/%s", folder, name) < sizeof path ? fopen(path, "rb") : NULL;
  if (!file) ek_fail(error, "%s/%s: cannot be read (%s): copy the whole bundle", folder, name, strerror(errno));
  return file;
}

int ek_check_files(const ek_bundle *bundle, const char *folder, ek_error *error) {
  for (size_t index = 0; index < bundle->file_count; ++index) {
    const ek_pair *known = &bundle->files[index];
    FILE *file = opened(folder, known->name, error);
    if (!file) return 0;
    Sha256 sha = {{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19}, {0}, 0};
    unsigned char part[1 << 14];
    char hex[65];
    for (size_t count; (count = fread(part, 1, sizeof part, file)) > 0;) update(&sha, part, count);
    int broken = ferror(file);
    fclose(file);
    finish(&sha, hex);
    if (broken) return ek_fail(error, "%s/%s: cannot be read to its end: copy it again", folder, known->name);
    if (strcmp(hex, known->value) != 0)
      return ek_fail(error, "%s/%s: is not the file that was verified: its sha256 is %.12s..., not %.12s...; copy or fetch it anew", folder,
                     known->name, hex, known->value);
  }
  return 1;
}

void *ek_read(const char *folder, const char *name, size_t *size, ek_error *error) {
  FILE *file = opened(folder, name, error);
  if (!file) return NULL;
  long end = fseek(file, 0, SEEK_END) ? -1 : ftell(file);
  void *bytes = end < 0 ? NULL : malloc((size_t)end + 1);
  rewind(file);
  *size = bytes ? fread(bytes, 1, (size_t)end, file) : 0;
  fclose(file);
  if (bytes && *size == (size_t)end) return bytes;
  free(bytes);
  ek_fail(error, "%s/%s: cannot be read to its end: copy it again", folder, name);
  return NULL;
}

/* --- The runtime, and what the model answers ---------------------------------------------------------------------------------------- */

int ek_check_version(const ek_bundle *bundle, const char *found, ek_error *error) {
  int here[3] = {0}, needed[3] = {0};
  sscanf(found, "%d.%d.%d", &here[0], &here[1], &here[2]);
  sscanf(bundle->minimum, "%d.%d.%d", &needed[0], &needed[1], &needed[2]);
  for (int at = 0; at < 3; ++at) {
    if (here[at] > needed[at]) return 1;
    if (here[at] < needed[at]) return ek_fail(error, "%s %s is too old for this bundle: it needs %s", bundle->runtime, found, bundle->minimum);
  }
  return 1;
}

ek_answer ek_best(const ek_bundle *bundle, const float *output, int says_something) {
  size_t best = 0;
  double sum = 0;
  for (size_t at = 1; at < bundle->label_count; ++at)
    if (output[at] > output[best]) best = at;
  for (size_t at = 0; at < bundle->label_count; ++at) sum += exp((double)output[at] - (double)output[best]);
  ek_answer answer = {bundle->labels[best], 1 / sum};
  if (!bundle->out_of_scope || (says_something && answer.score >= bundle->threshold)) return answer;
  answer.label = bundle->out_of_scope;
  answer.score = says_something ? 1 - answer.score : 1;
  return answer;
}

int ek_check_golden(const ek_bundle *bundle, const ek_golden *row, const float *output, int says_something, ek_error *error) {
  static const char *const remedy = "another engine, CPU or tokenizer computes something else than what was verified";
  if (row->embedding) {
    double both = 0, one = 0, other = 0;
    for (size_t at = 0; at < bundle->width; ++at) {
      both += (double)output[at] * (double)row->embedding[at];
      one += (double)output[at] * (double)output[at];
      other += (double)row->embedding[at] * (double)row->embedding[at];
    }
    double away = 1 - both / sqrt(one * other);
    if (away <= bundle->tolerance) return 1;
    return ek_fail(error, "\"%.60s\" has an embedding that is %.4f away (1 - cosine) from the golden one: %s", row->text, away, remedy);
  }
  ek_answer answer = ek_best(bundle, output, says_something);
  if (strcmp(answer.label, row->label) == 0 && fabs(answer.score - row->score) <= bundle->tolerance) return 1;
  return ek_fail(error, "\"%.60s\" gives %s %.4f, and the golden answer is %s %.4f: %s", row->text, answer.label, answer.score, row->label,
                 row->score, remedy);
}

char *ek_prompted(const ek_bundle *bundle, const char *prompt, const char *text, size_t *length, ek_error *error) {
  const char *before = prompt ? NULL : bundle->prompt;
  if (prompt && !*prompt) before = "";
  for (size_t at = 0; !before && at < bundle->prompt_count; ++at)
    if (strcmp(bundle->prompts[at].name, prompt) == 0) before = bundle->prompts[at].value;
  char *whole = before ? malloc(strlen(before) + *length + 1) : NULL;
  if (!whole) {
    ek_fail(error, before ? "no memory for a text of %zu bytes" : "no prompt of this name: those are in bundle.c (%zu bytes of text)", *length);
    return NULL;
  }
  memcpy(whole, before, strlen(before));
  memcpy(whole + strlen(before), text, *length);
  *length += strlen(before);
  return whole;
}

/* --- What is asked of a model that writes, and what it says -------------------------------------------------------------------------- */

/* The bytes of the blank that begins here, by what Python's str.strip takes away; 0 where none does. */
static size_t blank(const char *text, size_t left) {
  static const char *const wide[] = {"\xc2\x85", "\xc2\xa0", "\xe1\x9a\x80", "\xe2\x80\xa8", "\xe2\x80\xa9", "\xe2\x80\xaf", "\xe2\x81\x9f", "\xe3\x80\x80"};
  const unsigned char *byte = (const unsigned char *)text;
  if (left > 0 && ((*byte >= 9 && *byte <= 13) || (*byte >= 28 && *byte <= 32))) return 1;
  if (left > 2 && byte[0] == 0xe2 && byte[1] == 0x80 && byte[2] >= 0x80 && byte[2] <= 0x8a) return 3;
  for (size_t at = 0; at < sizeof wide / sizeof *wide; ++at)
    if (left >= strlen(wide[at]) && memcmp(text, wide[at], strlen(wide[at])) == 0) return strlen(wide[at]);
  return 0;
}

static const char *trimmed(const char *text, size_t *length) {
  for (size_t bytes; (bytes = blank(text, *length)) > 0; *length -= bytes) text += bytes;
  for (size_t back = 1; back <= 3 && back <= *length; ++back)
    if (blank(text + *length - back, back) == back) {
      *length -= back;
      back = 0;
    }
  return text;
}

char *ek_question(const ek_bundle *b, const char *said, size_t *length, ek_error *error) {
  const char *before = b->chats ? b->before : "", *behind = b->chats ? b->behind : "";
  size_t own = strlen(said), first = strlen(before), last = strlen(behind);
  if (b->chats && b->trims) said = trimmed(said, &own);
  char *text = malloc(first + own + last + 1);
  if (!text) return ek_fail(error, "no memory for a text of %zu bytes", own), NULL;
  memcpy(text, before, first);
  memcpy(text + first, said, own);
  memcpy(text + first + own, behind, last + 1);
  *length = first + own + last;
  return text;
}

size_t ek_begun(const char *text, size_t length) {
  for (size_t back = 1; back < 4 && back <= length; ++back) {
    unsigned char byte = (unsigned char)text[length - back];
    size_t whole = byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : byte >= 0xc0 ? 2 : 1;
    if (byte < 0x80 || byte >= 0xc0) return back < whole ? back : 0;
  }
  return 0;
}
