import SwiftUI

@main
struct AssistantApp: App {
    var body: some Scene {
        WindowGroup { AssistantView() }
    }
}

struct AssistantView: View {
    @State private var assistant = Assistant()
    @State private var text = ""
    @State private var answer = "One moment ..."
    @State private var fetched = 0.0
    @State private var ready = false

    var body: some View {
        Form {
            TextField("What shall I do?", text: $text).onSubmit(ask)
            Button("Ask", action: ask).disabled(!ready)
            if !ready { ProgressView(value: fetched) }
            Text(answer)
        }
        .task {
            do {
                try await assistant.open { share in Task { @MainActor in fetched = share } }
                ready = true
                answer = "Ready."
            } catch {
                answer = "\(error)"
            }
        }
    }

    private func ask() {
        let said = text.trimmingCharacters(in: .whitespacesAndNewlines)
        guard ready, !said.isEmpty else { return }
        Task {
            do {
                answer = try await assistant.answer(said)
            } catch {
                answer = "\(error)"
            }
        }
    }
}
