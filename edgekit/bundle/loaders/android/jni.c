/* The loader in C as Model.kt calls it. Texts pass as bytes of UTF-8: JNI's own strings are of another encoding. */
#include <stdlib.h>
#include <string.h>

#include "load.h"
#include "shared.h"

JNIEXPORT jlong JNICALL Java_dev_edgekit_Model_open(JNIEnv *env, jclass us, jbyteArray folder) {
  (void)us;
  ek_error error = {"no memory"};
  char *path = ek_text_of(env, folder);
  ek_model *model = path ? ek_open(ek_verified(), path, &error) : NULL;
  free(path);
  if (!model) ek_thrown(env, error.text);
  return (jlong)(intptr_t)model;
}

JNIEXPORT jbyteArray JNICALL Java_dev_edgekit_Model_classify(JNIEnv *env, jclass us, jlong model, jbyteArray said, jfloatArray score) {
  (void)us;
  ek_error error = {"no memory"};
  ek_answer answer;
  if (!model) return ek_thrown(env, "this model was closed");
  char *text = ek_text_of(env, said);
  int fine = text && ek_classify((ek_model *)(intptr_t)model, text, &answer, &error);
  free(text);
  if (!fine) return ek_thrown(env, error.text);
  (*env)->SetFloatArrayRegion(env, score, 0, 1, &(jfloat){(jfloat)answer.score});
  return ek_bytes_of(env, answer.label, strlen(answer.label));
}

JNIEXPORT jfloatArray JNICALL Java_dev_edgekit_Model_embed(JNIEnv *env, jclass us, jlong model, jbyteArray said, jbyteArray prompt) {
  (void)us;
  ek_error error = {"no memory"};
  if (!model) return ek_thrown(env, "this model was closed");
  jsize width = (jsize)ek_verified()->width;
  char *text = ek_text_of(env, said), *name = prompt ? ek_text_of(env, prompt) : NULL;
  float *found = malloc(sizeof *found * ((size_t)width + 1));
  int fine = text && found && ek_embed((ek_model *)(intptr_t)model, text, name, found, &error);
  jfloatArray out = fine ? (*env)->NewFloatArray(env, width) : ek_thrown(env, error.text);
  if (out) (*env)->SetFloatArrayRegion(env, out, 0, width, found);
  free(text);
  free(name);
  free(found);
  return out;
}

JNIEXPORT void JNICALL Java_dev_edgekit_Model_close(JNIEnv *env, jclass us, jlong model) {
  (void)env, (void)us;
  ek_close((ek_model *)(intptr_t)model);
}
