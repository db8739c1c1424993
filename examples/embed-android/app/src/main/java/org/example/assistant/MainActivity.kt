package org.example.assistant

import android.app.Activity
import android.os.Bundle
import android.widget.Button
import android.widget.EditText
import android.widget.LinearLayout
import android.widget.ProgressBar
import android.widget.TextView
import dev.edgekit.Model
import java.io.File
import java.util.concurrent.Executors

/** A voice assistant's ears: a line of text in, an action and its score out. */
class MainActivity : Activity() {
    // The model is opened and asked here, one text after the other, and never on the main thread.
    private val worker = Executors.newSingleThreadExecutor()
    private var model: Model? = null
    private lateinit var text: EditText
    private lateinit var ask: Button
    private lateinit var progress: ProgressBar
    private lateinit var answer: TextView

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        text = EditText(this).apply { hint = "What shall I do?" }
        ask = Button(this).apply { setText("Ask") }
        progress = ProgressBar(this, null, android.R.attr.progressBarStyleHorizontal).apply { max = 1000 }
        answer = TextView(this).apply { setText("One moment ...") }
        val column = LinearLayout(this).apply { orientation = LinearLayout.VERTICAL }
        for (view in listOf(text, ask, progress, answer)) column.addView(view)
        setContentView(column)
        ask.isEnabled = false
        ask.setOnClickListener {
            val said = text.text.toString().trim()
            work { model?.classify(said)?.let { show("${it.label} (${(100 * it.score).toInt()}%): $said") } }
        }
        work {
            model = Model(folder())
            runOnUiThread { ask.isEnabled = true }
            show("Ready.")
        }
    }

    /** The model's folder, filled at the first start: from the asset pack, or from [FROM], where a download goes on that was cut off. */
    private fun folder(): File {
        val folder = File(filesDir, "model")
        if (FROM.isEmpty()) {
            Model.unpack(folder) { assets.open("bundle/$it") }
        } else {
            Model.fetch(folder, FROM) { _, done, all -> runOnUiThread { progress.progress = (1000 * done / maxOf(all, 1L)).toInt() } }
        }
        return folder
    }

    private fun work(task: () -> Unit) = worker.execute {
        try {
            task()
        } catch (failed: Exception) {
            show(failed.message ?: failed.toString())
        }
    }

    private fun show(line: String) = runOnUiThread { answer.text = line }

    override fun onDestroy() {
        worker.execute { model?.close() }
        worker.shutdown()
        super.onDestroy()
    }

    private companion object {
        /** Where the model is fetched from, ends in "/"; empty: the asset pack `model` has it. */
        const val FROM = ""
    }
}
