import CEdgekit
import Foundation

/// The label of a text and its score, 0 to 1.
public struct Answer: Equatable, Sendable {
    public let label: String
    public let score: Double
}

/// Answers from an edgekit bundle over onnxruntime, by the loader in C.
///
/// It checks the folder's files, onnxruntime's version and the golden answers first. Opening takes long: not on the main thread. One
/// thread asks at a time: an actor of yours may own it.
public final class Model: Embedded {
    private let model: OpaquePointer
    private let verified = ek_verified()!.pointee

    public init(folder: URL) throws {
        var error = ek_error()
        guard let model = ek_open(ek_verified(), folder.path, &error) else { throw EdgekitError(error) }
        self.model = model
    }

    deinit { ek_close(model) }

    /// The label of a text, and its score.
    public func classify(_ text: String) throws -> Answer {
        var error = ek_error()
        var answer = ek_answer()
        guard ek_classify(model, text, &answer, &error) == 1 else { throw EdgekitError(error) }
        return Answer(label: String(cString: answer.label), score: answer.score)
    }

    /// The embedding of a text; prompt: by its name, "" for none, nil the model's own.
    public func embed(_ text: String, prompt: String? = nil) throws -> [Float] {
        var error = ek_error()
        var found = [Float](repeating: 0, count: Int(verified.width))
        guard ek_embed(model, text, prompt, &found, &error) == 1 else { throw EdgekitError(error) }
        return found
    }
}
