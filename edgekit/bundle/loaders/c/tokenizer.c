#include "tokenizer.h"

#include <stdlib.h>
#include <string.h>

/* The sections of the file and the settings in its first one, in the order of edgekit/bundle/compact.py. */
enum {
  SETTINGS, STEPS, BEFORE, BEHIND, PREFIX, CLASSES, DECOMPOSED, DECOMPOSED_TO, LOWER, LOWER_TO, COMPOSED,
  WORDS, WORD_BYTES, MERGES, SINGLES, ADDED, ADDED_BYTES, ADDED_FLAGS
};
enum { KIND, SPLITTER, DIGITS, PREFIX_SPACE, DIGITS_ALONE, LIMIT, KEEP_LAST, UNKNOWN, LONGEST_WORD, WHOLE_WORDS };
enum { WORDPIECE = 1, BPE = 2 };
enum { BERT_SPLIT = 1, GPT2_SPLIT = 2, LLAMA3_SPLIT = 3 };
enum { CLEAN = 1, SPACE_CHINESE, DECOMPOSE, STRIP_NONSPACING, STRIP_MARKS, LOWERCASE, COMPOSE };
enum {
  DROPPED = 1, BLANK = 2, CHINESE = 4, MARK = 8, SPACE = 16, PUNCTUATION = 32, LETTER = 64, NUMBER = 128, REGEX_SPACE = 256,
  NUMERIC = 512, SAYS = 1024, COMBINING_SHIFT = 16
};
enum { LSTRIP = 1, RSTRIP = 2, NORMALIZED = 4 };

static const uint32_t NONE = 0xFFFFFFFF;

typedef struct {
  uint32_t *at;
  size_t count, room;
  int lost; /* no memory for more */
} List;

typedef struct {
  uint32_t rank, place, whole;
} Merge;

/* A text on its way to ids. */
typedef struct {
  const ek_tokenizer *tokenizer;
  List ids, spare, nexts, lasts, bytes;
  Merge *heap;
  size_t heap_count, heap_room;
  size_t limit;
  int full, lost;
} Run;

static uint32_t word(const ek_tokenizer *t, int section, size_t index) {
  const unsigned char *at = t->at[section] + 4 * index;
  return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static size_t words(const ek_tokenizer *t, int section) { return t->size[section] / 4; }

static void *grown(void *memory, size_t *room, size_t wanted, size_t width) {
  size_t more = *room * 2 > wanted ? *room * 2 : wanted + 64;
  void *found = more > SIZE_MAX / width ? NULL : realloc(memory, more * width);
  if (found) *room = more;
  return found;
}

static void push(List *list, uint32_t value) {
  if (list->count == list->room) {
    void *more = grown(list->at, &list->room, list->count + 1, sizeof *list->at);
    if (!more) {
      list->lost = 1;
      return;
    }
    list->at = more;
  }
  list->at[list->count++] = value;
}

/* --- What is known of characters ------------------------------------------------------------------------------------------------ */

/* Of rows of `width` words in the order of their first word, the last one that begins with `wanted` or less; rows there are. */
static size_t last_row(const ek_tokenizer *t, int section, size_t width, uint32_t wanted) {
  size_t low = 0, high = words(t, section) / width;
  while (high - low > 1) {
    size_t middle = low + (high - low) / 2;
    if (word(t, section, middle * width) <= wanted)
      low = middle;
    else
      high = middle;
  }
  return low;
}

static uint32_t classes(const ek_tokenizer *t, uint32_t point) {
  return point < 128 ? t->ascii[point] : word(t, CLASSES, 2 * last_row(t, CLASSES, 2, point) + 1);
}

static int is(const ek_tokenizer *t, uint32_t point, uint32_t bits) { return (classes(t, point) & bits) != 0; }

static uint32_t combining(const ek_tokenizer *t, uint32_t point) { return classes(t, point) >> COMBINING_SHIFT; }

/* What a character becomes by a mapping, itself where nothing is said of it. */
static void push_mapped(const ek_tokenizer *t, List *out, int section, uint32_t point) {
  size_t row = last_row(t, section, 2, point);
  if (word(t, section, 2 * row) != point) {
    push(out, point);
    return;
  }
  for (uint32_t at = word(t, section, 2 * row + 1), end = word(t, section, 2 * row + 3); at < end; ++at)
    push(out, word(t, section + 1, at));
}

enum { HANGUL = 0xAC00, LEADING = 0x1100, VOWEL = 0x1161, TRAILING = 0x11A7 }; /* The Unicode Standard, section 3.12 */

static void push_decomposed(const ek_tokenizer *t, List *out, uint32_t point) {
  if (point < HANGUL || point >= HANGUL + 11172) {
    push_mapped(t, out, DECOMPOSED, point);
    return;
  }
  point -= HANGUL;
  push(out, LEADING + point / 588);
  push(out, VOWEL + point % 588 / 28);
  if (point % 28) push(out, TRAILING + point % 28);
}

/* One character for two, NONE where there is none. */
static uint32_t composed(const ek_tokenizer *t, uint32_t first, uint32_t second) {
  if (first >= LEADING && first < LEADING + 19 && second >= VOWEL && second < VOWEL + 21)
    return HANGUL + ((first - LEADING) * 21 + (second - VOWEL)) * 28;
  if (first >= HANGUL && first < HANGUL + 11172 && (first - HANGUL) % 28 == 0 && second > TRAILING && second < TRAILING + 28)
    return first + (second - TRAILING);
  size_t low = 0, high = words(t, COMPOSED) / 3;
  while (low < high) {
    size_t middle = low + (high - low) / 2;
    uint32_t one = word(t, COMPOSED, 3 * middle), other = word(t, COMPOSED, 3 * middle + 1);
    if (one == first && other == second) return word(t, COMPOSED, 3 * middle + 2);
    if (one < first || (one == first && other < second))
      low = middle + 1;
    else
      high = middle;
  }
  return NONE;
}

/* --- What is done to a text before it is split ------------------------------------------------------------------------------------ */

/* Combining characters behind each other in the order of their classes: canonical ordering, The Unicode Standard, D109. */
static void order_marks(const ek_tokenizer *t, List *text, List *out) {
  for (size_t begin = 0, end; begin < text->count; begin = end) {
    uint32_t largest = 0, last = 0, sorted = 1;
    for (end = begin; end < text->count; ++end) {
      uint32_t rank = combining(t, text->at[end]);
      if (rank == 0) break;
      sorted = sorted && rank >= last;
      last = rank;
      if (rank > largest) largest = rank;
    }
    if (end == begin) {
      push(out, text->at[end++]);
      continue;
    }
    for (uint32_t rank = sorted ? largest : 1; rank <= largest; ++rank)
      for (size_t at = begin; at < end; ++at)
        if (sorted || combining(t, text->at[at]) == rank) push(out, text->at[at]);
  }
}

/* Canonical composition, The Unicode Standard, D117. */
static void compose(const ek_tokenizer *t, const List *text, List *out) {
  size_t starter = SIZE_MAX;
  uint32_t last = 0; /* the class of the character before, of those that stay behind the starter */
  for (size_t at = 0; at < text->count; ++at) {
    uint32_t point = text->at[at], rank = combining(t, point), whole = NONE;
    int reaches = starter != SIZE_MAX && (starter + 1 == out->count || (last < rank && last != 0));
    if (reaches) whole = composed(t, out->at[starter], point);
    if (whole != NONE) {
      out->at[starter] = whole;
      continue;
    }
    push(out, point);
    if (rank == 0) starter = out->count - 1;
    last = rank;
  }
}

static void take_step(const ek_tokenizer *t, uint32_t step, const List *text, List *out) {
  for (size_t at = 0; at < text->count; ++at) {
    uint32_t point = text->at[at];
    if (step == CLEAN) {
      if (!is(t, point, DROPPED)) push(out, is(t, point, BLANK) ? ' ' : point);
    } else if (step == SPACE_CHINESE) {
      int chinese = is(t, point, CHINESE);
      if (chinese) push(out, ' ');
      push(out, point);
      if (chinese) push(out, ' ');
    } else if (step == DECOMPOSE) {
      push_decomposed(t, out, point);
    } else if (step == STRIP_NONSPACING || step == STRIP_MARKS) {
      if (!is(t, point, MARK)) push(out, point);
    } else {
      push_mapped(t, out, LOWER, point);
    }
  }
}

static void swap(List *one, List *other) {
  List kept = *one;
  *one = *other;
  *other = kept;
  other->count = 0;
}

static void normalize(Run *run, List *text) {
  const ek_tokenizer *t = run->tokenizer;
  List out = {0};
  for (size_t index = 0; index < words(t, STEPS); ++index) {
    uint32_t step = word(t, STEPS, index);
    if (step == COMPOSE)
      compose(t, text, &out);
    else
      take_step(t, step, text, &out);
    swap(text, &out);
    if (step != DECOMPOSE) continue;
    order_marks(t, text, &out);
    swap(text, &out);
  }
  run->lost |= text->lost | out.lost;
  free(out.at);
}

/* --- Words that the file has, in the order of their bytes ------------------------------------------------------------------------- */

typedef struct {
  size_t low, high, depth; /* the rows that begin with the bytes so far, and how many these are */
} Found;

static size_t row_length(const ek_tokenizer *t, int section, size_t row) {
  return word(t, section, 2 * row + 3) - word(t, section, 2 * row + 1);
}

static int byte_at(const ek_tokenizer *t, int section, size_t row, size_t depth) {
  return depth < row_length(t, section, row) ? t->at[section + 1][word(t, section, 2 * row + 1) + depth] : -1;
}

static Found all_rows(const ek_tokenizer *t, int section) {
  Found found = {0, words(t, section) / 2 - 1, 0};
  return found;
}

/* The first of the rows whose next byte is `least` or more. */
static size_t first_row(const ek_tokenizer *t, int section, const Found *found, int least) {
  size_t low = found->low, high = found->high;
  while (low < high) {
    size_t middle = low + (high - low) / 2;
    if (byte_at(t, section, middle, found->depth) < least)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

/* One byte more; whether any row is left. */
static int narrow(const ek_tokenizer *t, int section, Found *found, unsigned char byte) {
  size_t low = first_row(t, section, found, byte), high = first_row(t, section, found, byte + 1);
  found->low = low;
  found->high = high;
  found->depth += 1;
  return low < high;
}

static int is_whole(const ek_tokenizer *t, int section, const Found *found) {
  return found->low < found->high && row_length(t, section, found->low) == found->depth;
}

/* --- Ids of a word ---------------------------------------------------------------------------------------------------------------- */

static int utf8(uint32_t point, unsigned char *out) {
  if (point < 0x80) return out[0] = (unsigned char)point, 1;
  int count = point < 0x800 ? 2 : point < 0x10000 ? 3 : 4;
  for (int at = count - 1; at > 0; --at, point >>= 6) out[at] = (unsigned char)(0x80 | (point & 0x3F));
  out[0] = (unsigned char)((0xF00 >> count) | point);
  return count;
}

static void emit(Run *run, uint32_t id) {
  if (run->ids.count < run->limit) push(&run->ids, id);
  run->full = run->ids.count >= run->limit;
}

/* The longest token that begins the bytes, of those that begin with a prefix; its length without that, 0 where there is none. */
static size_t longest_piece(const ek_tokenizer *t, const uint32_t *bytes, size_t count, int inside, uint32_t *id) {
  Found found = all_rows(t, WORDS);
  size_t prefix = inside ? t->size[PREFIX] : 0, longest = 0;
  for (size_t at = 0; at < prefix; ++at)
    if (!narrow(t, WORDS, &found, t->at[PREFIX][at])) return 0;
  for (size_t at = 0; at < count && narrow(t, WORDS, &found, (unsigned char)bytes[at]); ++at)
    if (is_whole(t, WORDS, &found)) {
      longest = at + 1;
      *id = word(t, WORDS, 2 * found.low);
    }
  return longest;
}

static void wordpiece(Run *run, const uint32_t *bytes, size_t count, size_t characters) {
  const ek_tokenizer *t = run->tokenizer;
  size_t begun = run->spare.count = 0;
  int known = characters <= t->settings[LONGEST_WORD];
  while (known && begun < count) {
    uint32_t id = 0;
    size_t length = longest_piece(t, bytes + begun, count - begun, begun > 0, &id);
    known = length > 0;
    begun += length;
    push(&run->spare, id);
  }
  if (!known) emit(run, t->settings[UNKNOWN]);
  for (size_t at = 0; known && at < run->spare.count && !run->full; ++at) emit(run, run->spare.at[at]);
}

static int before(const Merge *one, const Merge *other) {
  return one->rank != other->rank ? one->rank < other->rank : one->place < other->place;
}

/* What two tokens merge to: the row in MERGES, SIZE_MAX where they do not. */
static size_t merge_row(const ek_tokenizer *t, uint32_t first, uint32_t second) {
  size_t low = 0, high = words(t, MERGES) / 4;
  while (low < high) {
    size_t middle = low + (high - low) / 2;
    uint32_t one = word(t, MERGES, 4 * middle), other = word(t, MERGES, 4 * middle + 1);
    if (one == first && other == second) return middle;
    if (one < first || (one == first && other < second))
      low = middle + 1;
    else
      high = middle;
  }
  return SIZE_MAX;
}

static void push_merge(Run *run, const uint32_t *symbols, uint32_t place, uint32_t next) {
  size_t row = merge_row(run->tokenizer, symbols[place], symbols[next]);
  if (row == SIZE_MAX) return;
  if (run->heap_count == run->heap_room) {
    void *more = grown(run->heap, &run->heap_room, run->heap_count + 1, sizeof *run->heap);
    if (!more) {
      run->lost = 1;
      return;
    }
    run->heap = more;
  }
  Merge made = {word(run->tokenizer, MERGES, 4 * row + 2), place, word(run->tokenizer, MERGES, 4 * row + 3)};
  size_t at = run->heap_count++;
  for (; at > 0 && before(&made, &run->heap[(at - 1) / 2]); at = (at - 1) / 2) run->heap[at] = run->heap[(at - 1) / 2];
  run->heap[at] = made;
}

static Merge pop_merge(Run *run) {
  Merge first = run->heap[0], last = run->heap[--run->heap_count];
  size_t at = 0, child;
  while ((child = 2 * at + 1) < run->heap_count) {
    if (child + 1 < run->heap_count && before(&run->heap[child + 1], &run->heap[child])) ++child;
    if (!before(&run->heap[child], &last)) break;
    run->heap[at] = run->heap[child];
    at = child;
  }
  run->heap[at] = last;
  return first;
}

/* Merges tokens, the pair of the lowest rank first and of these the leftmost, until none is left to merge. */
static void merge_symbols(Run *run, List *symbols) {
  List *nexts = &run->nexts, *lasts = &run->lasts;
  size_t count = symbols->count;
  nexts->count = lasts->count = run->heap_count = 0;
  for (size_t at = 0; at < count; ++at) {
    push(nexts, at + 1 < count ? (uint32_t)at + 1 : NONE);
    push(lasts, at > 0 ? (uint32_t)at - 1 : NONE);
  }
  if (nexts->lost || lasts->lost) return;
  for (size_t at = 0; at + 1 < count; ++at) push_merge(run, symbols->at, (uint32_t)at, (uint32_t)at + 1);
  while (run->heap_count > 0) {
    Merge top = pop_merge(run);
    uint32_t place = top.place, next = nexts->at[place];
    if (lasts->at[place] == place || next == NONE) continue; /* merged into one before it */
    size_t row = merge_row(run->tokenizer, symbols->at[place], symbols->at[next]);
    if (row == SIZE_MAX || word(run->tokenizer, MERGES, 4 * row + 3) != top.whole) continue;
    symbols->at[place] = top.whole;
    uint32_t behind = nexts->at[place] = nexts->at[next];
    lasts->at[next] = next; /* gone */
    if (behind != NONE) {
      lasts->at[behind] = place;
      push_merge(run, symbols->at, place, behind);
    }
    if (lasts->at[place] != NONE) push_merge(run, symbols->at, lasts->at[place], place);
  }
  for (uint32_t at = 0; count > 0 && at != NONE && !run->full; at = nexts->at[at]) emit(run, symbols->at[at]);
}

static void byte_pairs(Run *run, const uint32_t *bytes, size_t count) {
  const ek_tokenizer *t = run->tokenizer;
  if (t->settings[WHOLE_WORDS]) {
    Found found = all_rows(t, WORDS);
    size_t at = 0;
    while (at < count && narrow(t, WORDS, &found, (unsigned char)bytes[at])) ++at;
    if (at == count && is_whole(t, WORDS, &found)) {
      emit(run, word(t, WORDS, 2 * found.low));
      return;
    }
  }
  run->spare.count = 0;
  for (size_t at = 0; at < count; ++at) {
    uint32_t id = word(t, SINGLES, bytes[at]);
    if (id == NONE) id = t->settings[UNKNOWN];
    if (id != NONE) push(&run->spare, id);
  }
  merge_symbols(run, &run->spare);
}

static void take_word(Run *run, const uint32_t *text, size_t count) {
  unsigned char spelled[4];
  run->bytes.count = 0;
  for (size_t at = 0; at < count; ++at)
    for (int byte = 0, length = utf8(text[at], spelled); byte < length; ++byte) push(&run->bytes, spelled[byte]);
  if (run->bytes.lost) return;
  if (run->tokenizer->settings[KIND] == WORDPIECE)
    wordpiece(run, run->bytes.at, run->bytes.count, count);
  else
    byte_pairs(run, run->bytes.at, run->bytes.count);
}

/* --- Words of a text: the end of the one that begins at 0 -------------------------------------------------------------------------- */

static size_t run_of(const ek_tokenizer *t, const uint32_t *text, size_t at, size_t count, uint32_t bits, int wanted) {
  while (at < count && is(t, text[at], bits) == wanted) ++at;
  return at;
}

/* Of 's 't 're 've 'm 'll 'd behind an apostrophe: the length, 0 where none is there. U+017F is the other lower case of S. */
static size_t contraction(const uint32_t *text, size_t count, int any_case) {
  static const char *const known[] = {"s", "t", "re", "ve", "m", "ll", "d"};
  if (text[0] != '\'') return 0;
  for (size_t index = 0; index < sizeof known / sizeof *known; ++index) {
    size_t length = strlen(known[index]), alike = 0;
    while (alike < length && alike + 1 < count) {
      uint32_t point = text[alike + 1];
      if (any_case && point >= 'A' && point <= 'Z') point += 'a' - 'A';
      if (any_case && point == 0x17F) point = 's';
      if (point != (unsigned char)known[index][alike]) break;
      ++alike;
    }
    if (alike == length) return 1 + length;
  }
  return 0;
}

/* \s+(?!\S)|\s+: the last blank before a word is left to that. */
static size_t blanks(const ek_tokenizer *t, const uint32_t *text, size_t count) {
  size_t end = run_of(t, text, 0, count, REGEX_SPACE, 1);
  return end == count || end == 1 ? end : end - 1;
}

/* 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ */
static size_t gpt2_word(const ek_tokenizer *t, const uint32_t *text, size_t count) {
  size_t found = contraction(text, count, 0), begin = text[0] == ' ' && count > 1;
  if (found) return found;
  if (is(t, text[begin], LETTER)) return run_of(t, text, begin, count, LETTER, 1);
  if (is(t, text[begin], NUMBER)) return run_of(t, text, begin, count, NUMBER, 1);
  if (!is(t, text[begin], REGEX_SPACE)) return run_of(t, text, begin, count, REGEX_SPACE | LETTER | NUMBER, 0);
  return blanks(t, text, count);
}

static int ends_line(uint32_t point) { return point == '\r' || point == '\n'; }

/* (?i:'s|...)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+ */
static size_t llama3_word(const ek_tokenizer *t, const uint32_t *text, size_t count) {
  size_t found = contraction(text, count, 1), begin = text[0] == ' ' && count > 1;
  if (found) return found;
  if (is(t, text[0], LETTER)) return run_of(t, text, 0, count, LETTER, 1);
  if (!ends_line(text[0]) && !is(t, text[0], NUMBER) && count > 1 && is(t, text[1], LETTER)) return run_of(t, text, 1, count, LETTER, 1);
  if (is(t, text[0], NUMBER)) {
    size_t most = t->settings[DIGITS] && t->settings[DIGITS] < count ? t->settings[DIGITS] : count;
    return run_of(t, text, 0, most, NUMBER, 1);
  }
  if (!is(t, text[begin], REGEX_SPACE | LETTER | NUMBER)) {
    size_t end = run_of(t, text, begin, count, REGEX_SPACE | LETTER | NUMBER, 0);
    while (end < count && ends_line(text[end])) ++end;
    return end;
  }
  for (size_t end = run_of(t, text, 0, count, REGEX_SPACE, 1); end > 0; --end)
    if (ends_line(text[end - 1])) return end;
  return blanks(t, text, count);
}

static size_t bert_word(const ek_tokenizer *t, const uint32_t *text, size_t count) {
  if (is(t, text[0], SPACE | PUNCTUATION)) return 1;
  return run_of(t, text, 0, count, SPACE | PUNCTUATION, 0);
}

static void take_words(Run *run, const uint32_t *text, size_t count) {
  const ek_tokenizer *t = run->tokenizer;
  uint32_t splitter = t->settings[SPLITTER];
  for (size_t at = 0; at < count && !run->full;) {
    const uint32_t *rest = text + at;
    size_t left = count - at;
    size_t length = splitter == BERT_SPLIT ? bert_word(t, rest, left) : splitter == GPT2_SPLIT ? gpt2_word(t, rest, left) : llama3_word(t, rest, left);
    if (splitter != BERT_SPLIT || !is(t, rest[0], SPACE)) take_word(run, rest, length);
    at += length;
  }
}

/* A text between added tokens, as it is split into words. */
static void take_piece(Run *run, const uint32_t *text, size_t count) {
  const ek_tokenizer *t = run->tokenizer;
  if (count == 0) return;
  if (t->settings[PREFIX_SPACE] && text[0] != ' ') {
    List spaced = {0};
    push(&spaced, ' ');
    for (size_t at = 0; at < count; ++at) push(&spaced, text[at]);
    if (!spaced.lost) take_words(run, spaced.at, spaced.count);
    run->lost |= spaced.lost;
    free(spaced.at);
    return;
  }
  if (!t->settings[DIGITS_ALONE]) {
    take_words(run, text, count);
    return;
  }
  for (size_t at = 0, end; at < count && !run->full; at = end) {
    end = is(t, text[at], NUMERIC) ? at + 1 : run_of(t, text, at, count, NUMERIC, 0);
    take_words(run, text + at, end - at);
  }
}

/* --- Added tokens, which are found before anything is split ------------------------------------------------------------------------ */

/* The longest added token that begins here: its row and its length in characters, 0 where there is none. */
static size_t added_token(const ek_tokenizer *t, const uint32_t *text, size_t count, uint32_t normalized, size_t *row) {
  Found found = all_rows(t, ADDED);
  unsigned char spelled[4];
  size_t longest = 0;
  for (size_t at = 0; at < count; ++at) {
    for (int byte = 0, length = utf8(text[at], spelled); byte < length; ++byte)
      if (!narrow(t, ADDED, &found, spelled[byte])) return longest;
    for (size_t one = found.low; one < found.high && row_length(t, ADDED, one) == found.depth; ++one)
      if ((word(t, ADDED_FLAGS, one) & NORMALIZED) == normalized) {
        longest = at + 1;
        *row = one;
      }
  }
  return longest;
}

static void take_added(Run *run, const uint32_t *text, size_t count, uint32_t normalized);

static void take_between(Run *run, const uint32_t *text, size_t count, uint32_t normalized) {
  if (normalized) {
    take_piece(run, text, count);
    return;
  }
  List copy = {0};
  for (size_t at = 0; at < count; ++at) push(&copy, text[at]);
  normalize(run, &copy);
  if (!copy.lost) take_added(run, copy.at, copy.count, NORMALIZED);
  run->lost |= copy.lost;
  free(copy.at);
}

static void take_added(Run *run, const uint32_t *text, size_t count, uint32_t normalized) {
  const ek_tokenizer *t = run->tokenizer;
  size_t done = 0, at = 0, row = 0;
  while (at < count && !run->full) {
    size_t length = added_token(t, text + at, count - at, normalized, &row);
    if (length == 0) {
      ++at;
      continue;
    }
    size_t start = at, stop = at += length;
    uint32_t flags = word(t, ADDED_FLAGS, row);
    if (flags & LSTRIP)
      while (start > done && is(t, text[start - 1], SPACE)) --start;
    if (flags & RSTRIP)
      while (stop < count && is(t, text[stop], SPACE)) ++stop;
    if (done < start) take_between(run, text + done, start - done, normalized);
    if (!run->full) emit(run, word(t, ADDED, 2 * row));
    done = stop;
  }
  if (done < count && !run->full) take_between(run, text + done, count - done, normalized);
}

/* --- What others call --------------------------------------------------------------------------------------------------------------- */

/* The next character; U+FFFD for bytes that are none, as many as Unicode's "maximal subpart" has (The Unicode Standard, section 3.9). */
static uint32_t next_point(const unsigned char *text, size_t count, size_t *at) {
  unsigned char first = text[(*at)++];
  if (first < 0x80) return first;
  if (first < 0xC2 || first > 0xF4) return 0xFFFD;
  int more = first < 0xE0 ? 1 : first < 0xF0 ? 2 : 3;
  unsigned char low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80, high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
  uint32_t point = first & (0x3F >> more);
  for (; more > 0; --more, low = 0x80, high = 0xBF) {
    if (*at >= count || text[*at] < low || text[*at] > high) return 0xFFFD;
    point = point << 6 | (text[(*at)++] & 0x3F);
  }
  return point;
}

static int has_rows(const ek_tokenizer *t, int section, size_t end) {
  size_t rows = words(t, section) / 2;
  uint32_t last = 0;
  if (rows == 0 || t->size[section] % 8) return 0;
  for (size_t row = 0; row < rows; ++row) {
    uint32_t begin = word(t, section, 2 * row + 1);
    if (begin < last || begin > end) return 0;
    last = begin;
  }
  return word(t, section, 2 * rows - 2) == NONE;
}

static int has_points(const ek_tokenizer *t, int section) {
  for (size_t index = 0; index < words(t, section); ++index)
    if (word(t, section, index) > 0x10FFFF) return 0;
  return 1;
}

const char *ek_open_tokenizer(ek_tokenizer *t, const void *bytes, size_t size) {
  static const char *const damaged = "the tokenizer's file is cut or damaged: make it anew with edgekit embed";
  const size_t head = 16 + 8 * EK_SECTIONS;
  if (size < 8 || memcmp(bytes, "EKTOKEN1", 8) != 0) return "the tokenizer's file is none of this version: make it anew with edgekit embed";
  memset(t, 0, sizeof *t);
  t->at[SETTINGS] = (const unsigned char *)bytes + 8;
  if (size < head || word(t, SETTINGS, 0) != size || word(t, SETTINGS, 1) != EK_SECTIONS) return damaged;
  for (int section = EK_SECTIONS - 1; section >= 0; --section) {
    size_t begin = word(t, SETTINGS, 2 + 2 * (size_t)section), count = word(t, SETTINGS, 3 + 2 * (size_t)section);
    if (begin < head || begin > size || count > size - begin) return damaged;
    t->size[section] = (uint32_t)count;
    t->at[section] = (const unsigned char *)bytes + begin;
  }
  if (t->size[SETTINGS] != sizeof t->settings) return damaged;
  for (size_t index = 0; index < sizeof t->settings / 4; ++index) t->settings[index] = word(t, SETTINGS, index);
  int fits = words(t, CLASSES) >= 2 && word(t, CLASSES, 0) == 0 && t->size[CLASSES] % 8 == 0;
  fits = fits && has_rows(t, DECOMPOSED, words(t, DECOMPOSED_TO)) && has_rows(t, LOWER, words(t, LOWER_TO));
  fits = fits && has_rows(t, WORDS, t->size[WORD_BYTES]) && has_rows(t, ADDED, t->size[ADDED_BYTES]);
  fits = fits && has_points(t, DECOMPOSED_TO) && has_points(t, LOWER_TO) && has_points(t, COMPOSED);
  fits = fits && words(t, ADDED_FLAGS) + 1 == words(t, ADDED) / 2 && (t->settings[KIND] == WORDPIECE || words(t, SINGLES) == 256);
  if (!fits) return damaged;
  for (uint32_t point = 0; point < 128; ++point) t->ascii[point] = word(t, CLASSES, 2 * last_row(t, CLASSES, 2, point) + 1);
  return NULL;
}

/* The text's own ids, without those before and behind them. */
static void take_text(Run *run, const char *text, size_t length) {
  List points = {0};
  for (size_t at = 0; at < length;) push(&points, next_point((const unsigned char *)text, length, &at));
  if (!points.lost) take_added(run, points.at, points.count, 0);
  run->lost |= points.lost | run->ids.lost | run->spare.lost | run->nexts.lost | run->lasts.lost | run->bytes.lost;
  free(points.at);
}

const char *ek_tokenize(const ek_tokenizer *t, const char *text, size_t length, int64_t **ids, size_t *count) {
  Run run = {.tokenizer = t, .limit = t->settings[LIMIT] == NONE || t->settings[KEEP_LAST] ? SIZE_MAX : t->settings[LIMIT]};
  const size_t first = words(t, BEFORE), last = words(t, BEHIND);
  *ids = NULL;
  *count = 0;
  if (length > INT32_MAX) return "a text of 2 GB or more";
  run.full = run.limit == 0;
  if (!run.full) take_text(&run, text, length);
  size_t skipped = t->settings[LIMIT] < run.ids.count ? run.ids.count - t->settings[LIMIT] : 0; /* where the last are kept */
  size_t own = run.ids.count - skipped, all = first + own + last;
  int64_t *out = run.lost ? NULL : malloc((all + 1) * sizeof *out);
  if (out) {
    for (size_t at = 0; at < first; ++at) out[at] = word(t, BEFORE, at);
    for (size_t at = 0; at < own; ++at) out[first + at] = run.ids.at[skipped + at];
    for (size_t at = 0; at < last; ++at) out[first + own + at] = word(t, BEHIND, at);
    *ids = out;
    *count = all;
  }
  free(run.ids.at);
  free(run.spare.at);
  free(run.nexts.at);
  free(run.lasts.at);
  free(run.bytes.at);
  free(run.heap);
  return out ? NULL : "no memory for a text of this length";
}

int ek_says_something(const ek_tokenizer *t, const char *text, size_t length) {
  for (size_t at = 0; at < length;)
    if (is(t, next_point((const unsigned char *)text, length, &at), SAYS)) return 1;
  return 0;
}
