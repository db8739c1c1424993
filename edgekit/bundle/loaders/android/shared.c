#include "shared.h"

#include <stdlib.h>
#include <string.h>

#include "checks.h"

char *ek_text_of(JNIEnv *env, jbyteArray bytes) {
  jsize length = (*env)->GetArrayLength(env, bytes);
  char *text = malloc((size_t)length + 1);
  if (!text) return NULL;
  (*env)->GetByteArrayRegion(env, bytes, 0, length, (jbyte *)text);
  text[length] = 0;
  return text;
}

jbyteArray ek_bytes_of(JNIEnv *env, const char *text, size_t length) {
  jbyteArray bytes = (*env)->NewByteArray(env, (jsize)length);
  if (bytes) (*env)->SetByteArrayRegion(env, bytes, 0, (jsize)length, (const jbyte *)text);
  return bytes;
}

void *ek_thrown(JNIEnv *env, const char *why) {
  jclass kind = (*env)->FindClass(env, "java/lang/IllegalStateException"), text = (*env)->FindClass(env, "java/lang/String");
  jmethodID read = text ? (*env)->GetMethodID(env, text, "<init>", "([BLjava/lang/String;)V") : NULL;
  jmethodID make = kind ? (*env)->GetMethodID(env, kind, "<init>", "(Ljava/lang/String;)V") : NULL;
  /* Not ThrowNew, which takes JNI's own encoding: a sentence may name a text with any character, or cut it in one. */
  jbyteArray bytes = read && make ? ek_bytes_of(env, why, strlen(why)) : NULL;
  jstring charset = bytes ? (*env)->NewStringUTF(env, "UTF-8") : NULL;
  jobject sentence = charset ? (*env)->NewObject(env, text, read, bytes, charset) : NULL;
  jthrowable thrown = sentence ? (*env)->NewObject(env, kind, make, sentence) : NULL;
  if (thrown) (*env)->Throw(env, thrown);
  return NULL;
}

/* A line for each file that a bundle needs: its sha256 and its name. */
JNIEXPORT jbyteArray JNICALL Java_dev_edgekit_Files_lines(JNIEnv *env, jobject us) {
  (void)us;
  const ek_bundle *bundle = ek_verified();
  size_t room = 1;
  for (size_t at = 0; at < bundle->file_count; ++at) room += strlen(bundle->files[at].name) + 66;
  char *lines = calloc(room, 1);
  if (!lines) return ek_thrown(env, "no memory");
  for (size_t at = 0; at < bundle->file_count; ++at) {
    strcat(strcat(strcat(strcat(lines, bundle->files[at].value), " "), bundle->files[at].name), "\n");
  }
  jbyteArray bytes = ek_bytes_of(env, lines, strlen(lines));
  free(lines);
  return bytes;
}
