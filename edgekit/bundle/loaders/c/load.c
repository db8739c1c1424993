#include "load.h"

#include <stdlib.h>
#include <string.h>

#include "session.h"

struct ek_model {
  const ek_bundle *bundle;
  ek_session *session;
};

ek_model *ek_open(const ek_bundle *bundle, const char *folder, ek_error *error) {
  if (!ek_check_files(bundle, folder, error)) return NULL;
  ek_model *m = calloc(1, sizeof *m);
  if (!m) return ek_fail(error, "no memory"), NULL;
  m->bundle = bundle;
  m->session = ek_open_session(bundle, folder, error);
  int fine = m->session != NULL;
  for (size_t at = 0; fine && at < bundle->golden_count; ++at) {
    const ek_golden *row = &bundle->golden[at];
    const float *output = ek_run(m->session, row->text, NULL, error);
    fine = output && ek_check_golden(bundle, row, output, ek_session_says(m->session, row->text), error);
  }
  if (fine) return m;
  ek_close(m);
  return NULL;
}

int ek_classify(ek_model *m, const char *text, ek_answer *out, ek_error *error) {
  if (m->bundle->width) return ek_fail(error, "this model embeds: ask ek_embed");
  const float *output = ek_run(m->session, text, NULL, error);
  if (output) *out = ek_best(m->bundle, output, ek_session_says(m->session, text));
  return output != NULL;
}

int ek_embed(ek_model *m, const char *text, const char *prompt, float *embedding, ek_error *error) {
  if (!m->bundle->width) return ek_fail(error, "this model classifies: ask ek_classify");
  const float *output = ek_run(m->session, text, prompt, error);
  if (output) memcpy(embedding, output, m->bundle->width * sizeof *embedding);
  return output != NULL;
}

void ek_close(ek_model *m) {
  if (!m) return;
  ek_close_session(m->session);
  free(m);
}
