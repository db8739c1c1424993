import CEdgekit
import Foundation

/// What is wrong, in one sentence.
public struct EdgekitError: Error, CustomStringConvertible {
    public let description: String
}

/// The label of a text and its score, 0 to 1.
public struct Answer: Equatable, Sendable {
    public let label: String
    public let score: Double
}

/// Answers from an edgekit bundle over onnxruntime, by the loader in C.
///
/// It checks the folder's files, onnxruntime's version and the golden answers first. Opening takes long: not on the main thread. One
/// thread asks at a time: an actor of yours may own it.
public final class Model {
    private let model: OpaquePointer
    private let verified = ek_verified()!.pointee

    public init(folder: URL) throws {
        var error = ek_error()
        guard let model = ek_open(ek_verified(), folder.path, &error) else { throw Model.failure(&error) }
        self.model = model
    }

    deinit { ek_close(model) }

    /// The label of a text, and its score.
    public func classify(_ text: String) throws -> Answer {
        var error = ek_error()
        var answer = ek_answer()
        guard ek_classify(model, text, &answer, &error) == 1 else { throw Model.failure(&error) }
        return Answer(label: String(cString: answer.label), score: answer.score)
    }

    /// The embedding of a text; prompt: by its name, "" for none, nil the model's own.
    public func embed(_ text: String, prompt: String? = nil) throws -> [Float] {
        var error = ek_error()
        var found = [Float](repeating: 0, count: Int(verified.width))
        guard ek_embed(model, text, prompt, &found, &error) == 1 else { throw Model.failure(&error) }
        return found
    }

    /// The files that a bundle needs, with their sha256: what an app ships in its resources, or fetches at its first start.
    public static var files: [String: String] {
        let verified = ek_verified()!.pointee
        return Dictionary(uniqueKeysWithValues: (0..<Int(verified.file_count)).map { at in
            (String(cString: verified.files[at].name), String(cString: verified.files[at].value))
        })
    }

    private static func failure(_ error: inout ek_error) -> EdgekitError {
        withUnsafeBytes(of: &error.text) { EdgekitError(description: String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)) }
    }
}
