package dev.edgekit

import java.io.File
import java.io.IOException
import java.io.InputStream
import java.io.RandomAccessFile
import java.net.HttpURLConnection
import java.net.URL
import java.security.MessageDigest

/** How an app comes by a bundle's files. */
abstract class Files internal constructor() {
    /** The files that a bundle needs, with their sha256: what an app ships as assets, or fetches at its first start. */
    val files: Map<String, String>
        get() = String(lines()).lines().filter { it.isNotEmpty() }.associate { it.substringAfter(' ') to it.substringBefore(' ') }

    /** Copy the files that are not in [folder] yet from an app's assets, which no engine reads: `open` is `assets::open`. */
    fun unpack(folder: File, open: (String) -> InputStream) = each(folder) { name, part ->
        part.outputStream().use { out -> open(name).use { it.copyTo(out) } }
    }

    /**
     * Fetch the files that are not in [folder] yet from an address that ends in "/"; what was cut off goes on where it ended.
     * [progress] is told a file's name, and its bytes so far and in all (-1 where the server does not say).
     */
    fun fetch(folder: File, from: String, progress: (String, Long, Long) -> Unit = { _, _, _ -> }) = each(folder) { name, part ->
        download(URL(from + name), part) { done, all -> progress(name, done, all) }
    }

    private fun each(folder: File, put: (String, File) -> Unit) {
        folder.mkdirs()
        for ((name, sha256) in files) {
            val file = File(folder, name)
            if (file.isFile && hash(file) == sha256) continue
            val part = File(folder, "$name.part")
            put(name, part)
            if (hash(part) != sha256) {
                part.delete()
                throw IOException("$name: what came is not the file that was verified; its sha256 is another")
            }
            if (!part.renameTo(file)) throw IOException("$file: cannot be written")
        }
    }

    private fun download(address: URL, part: File, progress: (Long, Long) -> Unit) {
        val connection = address.openConnection() as HttpURLConnection
        connection.connectTimeout = 30_000
        connection.readTimeout = 30_000
        connection.setRequestProperty("Accept-Encoding", "identity") // Android asks for gzip, whose bytes are others
        if (part.length() > 0) connection.setRequestProperty("Range", "bytes=${part.length()}-")
        try {
            val code = connection.responseCode
            if (code == 416) return // nothing is missing: the hash tells whether it is right
            if (code != 200 && code != 206) throw IOException("$address: the server answers $code")
            RandomAccessFile(part, "rw").use { out ->
                if (code == 200) out.setLength(0) // the server sends all of it
                out.seek(out.length())
                val all = connection.getHeaderField("Content-Length")?.toLong()?.plus(out.length()) ?: -1
                val bytes = ByteArray(1 shl 16)
                connection.inputStream.use { body ->
                    generateSequence { body.read(bytes).takeIf { it >= 0 } }.forEach {
                        out.write(bytes, 0, it)
                        progress(out.length(), all)
                    }
                }
                if (out.length() < all) throw IOException("$address: ended after ${out.length()} of $all bytes; they are kept: try again")
            }
        } finally {
            connection.disconnect()
        }
    }

    private fun hash(file: File): String {
        val digest = MessageDigest.getInstance("SHA-256")
        val bytes = ByteArray(1 shl 16)
        file.inputStream().use { from ->
            generateSequence { from.read(bytes).takeIf { it >= 0 } }.forEach { digest.update(bytes, 0, it) }
        }
        return digest.digest().joinToString("") { "%02x".format(it) }
    }

    private external fun lines(): ByteArray

    private companion object {
        init {
            System.loadLibrary("edgekit")
        }
    }
}
