package dev.edgekit

import java.io.File
import java.util.function.Predicate

/**
 * Texts from an edgekit bundle over llama.cpp, by the loader in C (libedgekit.so, see CMakeLists.txt). It checks the folder's files,
 * llama.cpp's version and the golden answers first, and throws IllegalStateException with what is wrong. Opening and writing take
 * long: not on the main thread. One question is answered at a time, any number after each other.
 */
class Writer(folder: File) : AutoCloseable {
    private var writer = open(folder.path.encodeToByteArray())

    private var writing = false

    @Volatile
    private var stopped = false

    /**
     * The likeliest answer to a question, of a model that talks, or what follows a text: until the model ends it, or [most] tokens
     * long (0: as many as have room). [take] is given it piece by piece, whole characters; what it throws ends the answer.
     */
    fun write(said: String, most: Int = 0, take: (String) -> Unit = {}): String = alone {
        require(most >= 0) { "an answer has 0 tokens or more at most, not $most" }
        val answer = StringBuilder()
        write(writer, said.encodeToByteArray(), most, Predicate { bytes ->
            if (bytes.isNotEmpty()) bytes.decodeToString().let { answer.append(it); take(it) }
            !stopped
        })
        answer.toString()
    }

    /** End the answer that is being written, or the reading of its question; from any thread. */
    fun stop() {
        stopped = true
    }

    override fun close() = alone {
        close(writer)
        writer = 0
    }

    // What takes the pieces may not ask, or close, the writer that gives them.
    @Synchronized
    private fun <T> alone(task: () -> T): T {
        check(!writing) { "an answer is being written: stop it, and go on behind it" }
        writing = true
        stopped = false
        return try { task() } finally { writing = false }
    }

    companion object : Files() {
        @JvmStatic private external fun open(folder: ByteArray): Long
        @JvmStatic private external fun write(writer: Long, said: ByteArray, most: Int, take: Predicate<ByteArray>)
        @JvmStatic private external fun close(writer: Long)
    }
}
