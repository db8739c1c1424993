/* The loader in C as Model.kt calls it. Texts pass as bytes of UTF-8: JNI's own strings are of another encoding. */
#include <jni.h>
#include <stdlib.h>
#include <string.h>

#include "load.h"

/* The bytes of an array with a zero behind them; free() it. A zero within ends the text, as in every text that C reads. */
static char *text_of(JNIEnv *env, jbyteArray bytes) {
  jsize length = (*env)->GetArrayLength(env, bytes);
  char *text = malloc((size_t)length + 1);
  if (!text) return NULL;
  (*env)->GetByteArrayRegion(env, bytes, 0, length, (jbyte *)text);
  text[length] = 0;
  return text;
}

static jbyteArray bytes_of(JNIEnv *env, const char *text) {
  jsize length = (jsize)strlen(text);
  jbyteArray bytes = (*env)->NewByteArray(env, length);
  if (bytes) (*env)->SetByteArrayRegion(env, bytes, 0, length, (const jbyte *)text);
  return bytes;
}

static void *thrown(JNIEnv *env, const char *why) {
  jclass kind = (*env)->FindClass(env, "java/lang/IllegalStateException");
  if (kind) (*env)->ThrowNew(env, kind, why);
  return NULL;
}

JNIEXPORT jlong JNICALL Java_dev_edgekit_Model_open(JNIEnv *env, jclass us, jbyteArray folder) {
  (void)us;
  ek_error error = {"no memory"};
  char *path = text_of(env, folder);
  ek_model *model = path ? ek_open(ek_verified(), path, &error) : NULL;
  free(path);
  if (!model) thrown(env, error.text);
  return (jlong)(intptr_t)model;
}

JNIEXPORT jbyteArray JNICALL Java_dev_edgekit_Model_classify(JNIEnv *env, jclass us, jlong model, jbyteArray said, jfloatArray score) {
  (void)us;
  ek_error error = {"no memory"};
  ek_answer answer;
  if (!model) return thrown(env, "this model was closed");
  char *text = text_of(env, said);
  int fine = text && ek_classify((ek_model *)(intptr_t)model, text, &answer, &error);
  free(text);
  if (!fine) return thrown(env, error.text);
  (*env)->SetFloatArrayRegion(env, score, 0, 1, &(jfloat){(jfloat)answer.score});
  return bytes_of(env, answer.label);
}

JNIEXPORT jfloatArray JNICALL Java_dev_edgekit_Model_embed(JNIEnv *env, jclass us, jlong model, jbyteArray said, jbyteArray prompt) {
  (void)us;
  ek_error error = {"no memory"};
  if (!model) return thrown(env, "this model was closed");
  jsize width = (jsize)ek_verified()->width;
  char *text = text_of(env, said), *name = prompt ? text_of(env, prompt) : NULL;
  float *found = malloc(sizeof *found * ((size_t)width + 1));
  int fine = text && found && ek_embed((ek_model *)(intptr_t)model, text, name, found, &error);
  jfloatArray out = fine ? (*env)->NewFloatArray(env, width) : thrown(env, error.text);
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

/* A line for each file that a bundle needs: its sha256 and its name. */
JNIEXPORT jbyteArray JNICALL Java_dev_edgekit_Model_files(JNIEnv *env, jclass us) {
  (void)us;
  const ek_bundle *bundle = ek_verified();
  size_t room = 1;
  for (size_t at = 0; at < bundle->file_count; ++at) room += strlen(bundle->files[at].name) + 66;
  char *lines = calloc(room, 1);
  if (!lines) return thrown(env, "no memory");
  for (size_t at = 0; at < bundle->file_count; ++at) {
    strcat(strcat(strcat(strcat(lines, bundle->files[at].value), " "), bundle->files[at].name), "\n");
  }
  jbyteArray bytes = bytes_of(env, lines);
  free(lines);
  return bytes;
}
