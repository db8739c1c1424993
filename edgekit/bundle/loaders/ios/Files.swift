import CEdgekit
import Foundation
#if canImport(FoundationNetworking)
import FoundationNetworking
#endif

/// What is wrong, in one sentence.
public struct EdgekitError: Error, CustomStringConvertible {
    public let description: String

    init(_ description: String) { self.description = description }

    /// What the loader in C says.
    init(_ error: ek_error) {
        description = withUnsafeBytes(of: error.text) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
    }
}

/// How an app comes by a bundle's files.
public protocol Embedded {}

extension Embedded {
    /// The files that a bundle needs, with their sha256: what an app ships in its resources, or fetches at its first start.
    public static var files: [String: String] {
        let verified = ek_verified()!.pointee
        return Dictionary(uniqueKeysWithValues: (0..<Int(verified.file_count)).map { at in
            (String(cString: verified.files[at].name), String(cString: verified.files[at].value))
        })
    }

    /// Fetch the files that are not in `folder` yet from an address that ends in "/"; what was cut off goes on where it ended. A file
    /// is taken once its sha256 is the one that is compiled in.
    ///
    /// progress: is told a file's name, and its bytes so far and in all (-1 where the server does not say).
    public static func fetch(
        into folder: URL, from address: URL, progress: @escaping @Sendable (String, Int64, Int64) -> Void = { _, _, _ in }
    ) async throws {
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        for (name, sha256) in files.sorted(by: { $0.key < $1.key }) where !isWhole(folder, name, sha256) {
            let part = folder.appendingPathComponent("\(name).part"), file = folder.appendingPathComponent(name)
            try await Download(from: address.appendingPathComponent(name), to: part) { progress(name, $0, $1) }.run()
            guard isWhole(folder, part.lastPathComponent, sha256) else {
                try FileManager.default.removeItem(at: part)
                throw EdgekitError("\(name): what came is not the file that was verified; its sha256 is another")
            }
            try? FileManager.default.removeItem(at: file)
            try FileManager.default.moveItem(at: part, to: file)
        }
    }

    /// Whether a file has this sha256: the check of the loader in C, asked for one file.
    private static func isWhole(_ folder: URL, _ name: String, _ sha256: String) -> Bool {
        var error = ek_error()
        return name.withCString { name in
            sha256.withCString { sha256 in
                withUnsafePointer(to: ek_pair(name: name, value: sha256)) { pair in
                    var one = ek_verified()!.pointee
                    one.files = pair
                    one.file_count = 1
                    return ek_check_files(&one, folder.path, &error) == 1
                }
            }
        }
    }
}

/// One file on its way: what comes is written behind what is there.
private final class Download: NSObject, URLSessionDataDelegate, @unchecked Sendable {
    private let address: URL, part: URL, progress: (Int64, Int64) -> Void
    private var out: FileHandle?, done: Int64 = 0, all: Int64 = -1, wrong: Error?
    private var ended: CheckedContinuation<Void, Error>?

    init(from address: URL, to part: URL, progress: @escaping (Int64, Int64) -> Void) {
        (self.address, self.part, self.progress) = (address, part, progress)
    }

    func run() async throws {
        if !FileManager.default.fileExists(atPath: part.path) { try Data().write(to: part) }
        let file = try FileHandle(forWritingTo: part)
        (out, done) = (file, Int64(try file.seekToEnd()))
        defer { try? file.close() }
        var request = URLRequest(url: address, cachePolicy: .reloadIgnoringLocalCacheData, timeoutInterval: 30)
        request.setValue("identity", forHTTPHeaderField: "Accept-Encoding")
        if done > 0 { request.setValue("bytes=\(done)-", forHTTPHeaderField: "Range") }
        let session = URLSession(configuration: .ephemeral, delegate: self, delegateQueue: nil)
        defer { session.finishTasksAndInvalidate() }
        try await withCheckedThrowingContinuation { ended = $0; session.dataTask(with: request).resume() }
    }

    func urlSession(
        _ session: URLSession, dataTask: URLSessionDataTask, didReceive response: URLResponse,
        completionHandler: @escaping (URLSession.ResponseDisposition) -> Void
    ) {
        let code = (response as? HTTPURLResponse)?.statusCode ?? 0
        switch code {
        case 200, 206:
            if code == 200 { attempt { try out?.truncate(atOffset: 0); done = 0 } } // the server sends all of it
            all = response.expectedContentLength < 0 ? -1 : done + response.expectedContentLength
        case 416: break // nothing is missing: the hash tells whether it is right
        default: wrong = EdgekitError("\(address): the server answers \(code)")
        }
        completionHandler(wrong == nil && code != 416 ? .allow : .cancel)
        if code == 416 { end(nil) } else if let wrong { end(wrong) }
    }

    func urlSession(_ session: URLSession, dataTask: URLSessionDataTask, didReceive data: Data) {
        attempt { try out?.write(contentsOf: data); done += Int64(data.count) }
        if wrong == nil { progress(done, all) } else { dataTask.cancel() }
    }

    func urlSession(_ session: URLSession, task: URLSessionTask, didCompleteWithError error: Error?) {
        guard wrong == nil, error != nil || done < all else { return end(wrong) }
        let size = all < 0 ? "" : " of \(all)", why = error.map { " (\($0.localizedDescription))" } ?? ""
        end(EdgekitError("\(address): ended after \(done)\(size) bytes\(why); they are kept: try again"))
    }

    private func attempt(_ write: () throws -> Void) {
        do { try write() } catch { wrong = wrong ?? error }
    }

    private func end(_ error: Error?) {
        if let error { ended?.resume(throwing: error) } else { ended?.resume() }
        ended = nil
    }
}
