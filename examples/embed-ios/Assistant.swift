import Edgekit
import Foundation

/// A voice assistant's ears: a line of text in, an action and its score out. One text is asked at a time, and not on the main thread.
actor Assistant {
    /// Where the model is fetched from at the first start, ends in "/"; nil: the app has it as a resource folder `bundle`.
    static let address: URL? = nil
    private var model: Model?

    /// Open the model. progress: the share of a file that is fetched, 0 to 1.
    func open(progress: @escaping @Sendable (Double) -> Void) async throws {
        model = try Model(folder: try await folder(progress))
    }

    func answer(_ text: String) throws -> String {
        guard let answer = try model?.classify(text) else { return "The model is not open." }
        return "\(answer.label) (\(Int(100 * answer.score))%): \(text)"
    }

    private func folder(_ progress: @escaping @Sendable (Double) -> Void) async throws -> URL {
        guard let address = Assistant.address else {
            guard let shipped = Foundation.Bundle.main.url(forResource: "bundle", withExtension: nil) else {
                throw Missing(description: "the app has no folder `bundle` among its resources")
            }
            return shipped
        }
        let folder = try FileManager.default
            .url(for: .applicationSupportDirectory, in: .userDomainMask, appropriateFor: nil, create: true)
            .appendingPathComponent("model")
        try await Model.fetch(into: folder, from: address) { _, done, all in progress(Double(done) / Double(max(all, 1))) }
        return folder
    }
}

struct Missing: Error, CustomStringConvertible {
    let description: String
}
