package dev.edgekit

import java.io.File

/** The label of a text and its score, 0 to 1. */
data class Answer(val label: String, val score: Float)

/**
 * Answers from an edgekit bundle over onnxruntime, by the loader in C (libedgekit.so, see CMakeLists.txt). It checks the folder's
 * files, onnxruntime's version and the golden answers first, and throws IllegalStateException with what is wrong. Opening takes long:
 * not on the main thread. One thread asks at a time.
 */
class Model(folder: File) : AutoCloseable {
    private var model = open(folder.path.encodeToByteArray())

    /** The label of a text, and its score. */
    @Synchronized
    fun classify(text: String): Answer {
        val score = FloatArray(1)
        return Answer(classify(model, text.encodeToByteArray(), score).decodeToString(), score[0])
    }

    /** The embedding of a text; [prompt]: by its name, "" for none, null the model's own. */
    @Synchronized
    fun embed(text: String, prompt: String? = null): FloatArray = embed(model, text.encodeToByteArray(), prompt?.encodeToByteArray())

    @Synchronized
    override fun close() {
        close(model)
        model = 0
    }

    companion object : Files() {
        @JvmStatic private external fun open(folder: ByteArray): Long
        @JvmStatic private external fun classify(model: Long, text: ByteArray, score: FloatArray): ByteArray
        @JvmStatic private external fun embed(model: Long, text: ByteArray, prompt: ByteArray?): FloatArray
        @JvmStatic private external fun close(model: Long)
    }
}
