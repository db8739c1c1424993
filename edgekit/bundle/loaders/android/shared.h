/* What the loaders in C share where Kotlin calls them. */
#ifndef EDGEKIT_SHARED_H
#define EDGEKIT_SHARED_H

#include <jni.h>
#include <stddef.h>

/* The bytes of an array with a zero behind them; free() it. A zero within ends the text, as in every text that C reads. */
char *ek_text_of(JNIEnv *env, jbyteArray bytes);

jbyteArray ek_bytes_of(JNIEnv *env, const char *text, size_t length);

/* Throws IllegalStateException; always NULL, for `return ek_thrown(...)`. */
void *ek_thrown(JNIEnv *env, const char *why);

#endif
