import CEdgekit
import Foundation

/// Texts from an edgekit bundle over llama.cpp, by the loader in C.
///
/// It checks the folder's files, llama.cpp's version and the golden answers first. Opening takes long: not on the main thread.
public final class Writer: Embedded, @unchecked Sendable {
    private let writer: OpaquePointer
    private let queue = DispatchQueue(label: "edgekit")  // one question is answered after the other

    public init(folder: URL) throws {
        var error = ek_error()
        guard let writer = ek_open_writer(ek_verified(), folder.path, &error) else { throw EdgekitError(error) }
        self.writer = writer
    }

    deinit { ek_close_writer(writer) }

    /// The likeliest answer to a question, of a model that talks, or what follows a text: until the model ends it, or `most` tokens
    /// long (0: as many as have room). It comes piece by piece, whole characters; who leaves the loop ends it.
    public func write(_ said: String, most: UInt = 0) -> AsyncThrowingStream<String, Error> {
        AsyncThrowingStream { continuation in
            let asked = Asked(continuation)
            continuation.onTermination = { _ in asked.end() }
            queue.async {
                var error = ek_error()
                let to = Unmanaged.passRetained(asked)
                defer { to.release() }
                let fine = ek_write(self.writer, said, Int(most), { to, piece, length in
                    let bytes = UnsafeRawBufferPointer(start: piece, count: length)
                    return Unmanaged<Asked>.fromOpaque(to!).takeUnretainedValue().take(bytes) ? 1 : 0
                }, to.toOpaque(), &error)
                continuation.finish(throwing: fine == 1 ? nil : EdgekitError(error))
            }
        }
    }
}

/// A question on its way: whoever asked it may have left.
private final class Asked: @unchecked Sendable {
    private let continuation: AsyncThrowingStream<String, Error>.Continuation
    private let lock = NSLock()
    private var ended = false

    init(_ continuation: AsyncThrowingStream<String, Error>.Continuation) { self.continuation = continuation }

    func end() { lock.withLock { ended = true } }

    /// Whether more is wanted.
    func take(_ bytes: UnsafeRawBufferPointer) -> Bool {
        if !bytes.isEmpty { continuation.yield(String(decoding: bytes, as: UTF8.self)) }
        return lock.withLock { !ended }
    }
}
