/* fuzz FILE ROUNDS: random bytes as texts, and FILE cut and with random bytes, to the tokenizer in C. It prints how many damaged files
 * were opened all the same, and how many were refused; a sanitizer ends it where it reads or writes what is not its own. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tokenizer.h"

static uint64_t state = 88172645463325252u;

static uint32_t draw(uint32_t most) {
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return (uint32_t)(state >> 32) % most;
}

static void ask(const ek_tokenizer *tokenizer, int texts) {
  static const char *const parts[] = {"[MASK]", " <mask>", "'ll ", "1234", "\r\n", "\xcc\x81\xcc\xa3", "\xed\x95\x9c", "\xe4\xb8\xad", "\xc3\xa9", "ab", "  ", "<end> "};
  while (texts-- > 0) {
    size_t length = 0, room = draw(300);
    char *text = malloc(room + 1); /* so that one byte too far is found */
    while (length < room) {
      const char *part = parts[draw(sizeof parts / sizeof *parts)];
      if (draw(2) && strlen(part) <= room - length) {
        memcpy(text + length, part, strlen(part));
        length += strlen(part);
      } else {
        text[length++] = (char)draw(256);
      }
    }
    char *exact = realloc(text, length ? length : 1);
    int64_t *ids;
    size_t count;
    if (ek_tokenize(tokenizer, exact, length, &ids, &count) == NULL && count > 1000000) abort();
    ek_says_something(tokenizer, exact, length);
    free(ids);
    free(exact);
  }
}

int main(int count, char **words) {
  if (count != 3) return 2;
  FILE *file = fopen(words[1], "rb");
  if (!file || fseek(file, 0, SEEK_END)) return 2;
  size_t size = (size_t)ftell(file);
  unsigned char *whole = malloc(size);
  rewind(file);
  if (fread(whole, 1, size, file) != size) return 2;
  fclose(file);
  ek_tokenizer tokenizer;
  if (ek_open_tokenizer(&tokenizer, whole, size)) return 2;
  ask(&tokenizer, 3000);
  int opened = 0, refused = 0;
  for (int round = 0, rounds = atoi(words[2]); round < rounds; ++round) {
    size_t kept = draw(4) ? size : draw((uint32_t)size);
    unsigned char *damaged = malloc(kept ? kept : 1);
    memcpy(damaged, whole, kept);
    for (uint32_t changes = draw(8); kept && changes > 0; --changes) {
      size_t at = draw(5) ? draw((uint32_t)kept) : 8 + draw(300); /* the head more often */
      if (at < kept) damaged[at] = (unsigned char)(draw(3) ? draw(256) : 255);
    }
    if (kept > 12 && draw(2)) memcpy(damaged + 8, &(uint32_t){(uint32_t)kept}, 4); /* past the first check */
    if (ek_open_tokenizer(&tokenizer, damaged, kept) == NULL) {
      ++opened;
      ask(&tokenizer, 5);
    } else {
      ++refused;
    }
    free(damaged);
  }
  free(whole);
  printf("%d %d\n", opened, refused);
  return 0;
}
