/* The loader in C as Writer.kt calls it. Texts pass as bytes of UTF-8: JNI's own strings are of another encoding. */
#include <stdlib.h>

#include "generate.h"
#include "shared.h"

JNIEXPORT jlong JNICALL Java_dev_edgekit_Writer_open(JNIEnv *env, jclass us, jbyteArray folder) {
  (void)us;
  ek_error error = {"no memory"};
  char *path = ek_text_of(env, folder);
  ek_writer *writer = path ? ek_open_writer(ek_verified(), path, &error) : NULL;
  free(path);
  if (!writer) ek_thrown(env, error.text);
  return (jlong)(intptr_t)writer;
}

typedef struct {
  JNIEnv *env;
  jobject take; /* a java.util.function.Predicate, whose names no shrinker changes */
  jmethodID test;
} Taker;

/* Gives Kotlin a piece; 0 where it has enough of it, or threw what is thrown on behind this call. */
static int give(void *to, const char *piece, size_t length) {
  Taker *taker = to;
  JNIEnv *env = taker->env;
  jbyteArray bytes = ek_bytes_of(env, piece, length);
  int more = bytes && (*env)->CallBooleanMethod(env, taker->take, taker->test, bytes);
  (*env)->DeleteLocalRef(env, bytes);
  return more && !(*env)->ExceptionCheck(env);
}

JNIEXPORT void JNICALL Java_dev_edgekit_Writer_write(JNIEnv *env, jclass us, jlong writer, jbyteArray said, jint most, jobject take) {
  (void)us;
  ek_error error = {"no memory"};
  Taker taker = {env, take, (*env)->GetMethodID(env, (*env)->GetObjectClass(env, take), "test", "(Ljava/lang/Object;)Z")};
  if (!taker.test) return;
  char *text = writer ? ek_text_of(env, said) : NULL;
  if (!writer) ek_thrown(env, "this model was closed");
  else if (!text || !ek_write((ek_writer *)(intptr_t)writer, text, (size_t)most, give, &taker, &error)) ek_thrown(env, error.text);
  free(text);
}

JNIEXPORT void JNICALL Java_dev_edgekit_Writer_close(JNIEnv *env, jclass us, jlong writer) {
  (void)env, (void)us;
  ek_close_writer((ek_writer *)(intptr_t)writer);
}
