"""What of Android's API examples/embed-android calls, as Java for this machine's JVM: its signatures are those of API level 36.

A view only keeps what it is given, and what is to run on the main thread runs at once. Nothing of this is Android.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

# By a class's name, which may say what it extends: its members.
_CLASSES: Mapping[str, str] = {
    "android.R": "public static final class attr { public static final int progressBarStyleHorizontal = 16842872; }",
    "android.os.Bundle": "",
    "android.util.AttributeSet": "",
    "android.content.res.AssetManager": """
    public final java.io.InputStream open(String fileName) throws java.io.IOException {
      return new java.io.FileInputStream(System.getProperty("assets") + "/" + fileName);
    }""",
    "android.content.Context": """
    public java.io.File getFilesDir() { return new java.io.File(System.getProperty("files")); }
    public final android.content.res.AssetManager getAssets() { return new android.content.res.AssetManager(); }""",
    "android.app.Activity extends android.content.Context": """
    public android.view.View shown;
    protected void onCreate(android.os.Bundle savedInstanceState) {}
    protected void onDestroy() {}
    public void setContentView(android.view.View view) { shown = view; }
    public final void runOnUiThread(Runnable action) { action.run(); }""",
    "android.view.View": """
    public interface OnClickListener { void onClick(View v); }
    public OnClickListener listener;
    private boolean enabled = true;
    public View(android.content.Context context) {}
    public boolean isEnabled() { return enabled; }
    public void setEnabled(boolean enabled) { this.enabled = enabled; }
    public void setOnClickListener(OnClickListener l) { listener = l; }""",
    "android.view.ViewGroup extends android.view.View": """
    public final java.util.List<android.view.View> views = new java.util.ArrayList<>();
    public ViewGroup(android.content.Context context) { super(context); }
    public void addView(android.view.View child) { views.add(child); }""",
    "android.widget.LinearLayout extends android.view.ViewGroup": """
    public static final int VERTICAL = 1;
    private int orientation;
    public LinearLayout(android.content.Context context) { super(context); }
    public int getOrientation() { return orientation; }
    public void setOrientation(int orientation) { this.orientation = orientation; }""",
    "android.widget.TextView extends android.view.View": """
    protected CharSequence text = "", hint;
    public TextView(android.content.Context context) { super(context); }
    public CharSequence getText() { return text; }
    public final void setText(CharSequence text) { this.text = text; }
    public CharSequence getHint() { return hint; }
    public final void setHint(CharSequence hint) { this.hint = hint; }""",
    "android.widget.Button extends android.widget.TextView": """
    public Button(android.content.Context context) { super(context); }""",
    "android.widget.EditText extends android.widget.TextView": """
    public EditText(android.content.Context context) { super(context); }""",
    "android.widget.ProgressBar extends android.view.View": """
    private int max, progress;
    public ProgressBar(android.content.Context context, android.util.AttributeSet attrs, int defStyleAttr) { super(context); }
    public int getMax() { return max; }
    public void setMax(int max) { this.max = max; }
    public int getProgress() { return progress; }
    public void setProgress(int progress) { this.progress = progress; }""",
}


def write_android(folder: Path) -> list[Path]:
    """Write the classes as sources of Java; their paths."""
    paths = []
    for declared, members in _CLASSES.items():
        name, _, parent = declared.partition(" extends ")
        package, _, kind = name.rpartition(".")
        path = folder / f"{name.replace('.', '/')}.java"
        path.parent.mkdir(parents=True, exist_ok=True)
        extends = f" extends {parent}" if parent else ""
        path.write_text(f"package {package};\npublic class {kind}{extends} {{{members}\n}}\n", encoding="utf-8")
        paths.append(path)
    return paths
