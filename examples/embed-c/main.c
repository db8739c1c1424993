/* A voice assistant's ears in C: one line of text in, one action and its score out. See README.md.
 *
 * ./app path/to/bundle < commands.txt */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "load.h"

static double now_ms(void) {
  struct timespec now;
  timespec_get(&now, TIME_UTC);
  return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

/* A line of any length without its end; NULL at the end of what there is. */
static char *read_line(FILE *from) {
  size_t length = 0, room = 256;
  char *line = malloc(room);
  for (int byte; line && (byte = getc(from)) != EOF && byte != '\n';) {
    if (length + 1 == room) line = realloc(line, room *= 2);
    if (line) line[length++] = (char)byte;
  }
  if (line) line[length] = 0;
  if (line && length == 0 && feof(from)) return free(line), NULL;
  return line;
}

int main(int count, char **words) {
  if (count != 2) return fprintf(stderr, "usage: app BUNDLE < commands.txt\n"), 2;
  ek_error error;
  ek_answer answer;
  double begun = now_ms(), cold = 0, warm = 0;
  ek_model *model = ek_open(ek_verified(), words[1], &error);
  if (!model) return fprintf(stderr, "%s\n", error.text), 1;
  cold = now_ms() - begun;
  size_t lines = 0;
  for (char *line; (line = read_line(stdin)); free(line), ++lines) {
    begun = now_ms();
    if (!ek_classify(model, line, &answer, &error)) return fprintf(stderr, "%s\n", error.text), 1;
    warm += now_ms() - begun;
    printf("%s %.6f\n", answer.label, answer.score);
  }
  fprintf(stderr, "opened in %.0f ms, %.2f ms an answer\n", cold, lines ? warm / (double)lines : 0.0);
  ek_close(model);
  return 0;
}
