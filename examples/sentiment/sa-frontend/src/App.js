import { Component, createElement as h } from "react";
import { Polarity } from "./Polarity.js";

/** The page: a sentence, a button, and what the analysis says. */
export class App extends Component {
  state = { sentence: "", result: null, error: null };

  analyzeSentence = (event) => {
    event.preventDefault();
    fetch("http://localhost:8080/sentiment", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ sentence: this.state.sentence }),
    })
      .then((response) => (response.ok ? response.json() : Promise.reject(new Error(response.statusText))))
      .then((data) => this.setState({ result: data, error: null }))
      .catch((error) => this.setState({ result: null, error: error.message }));
  };

  render() {
    const { sentence, result, error } = this.state;
    return h(
      "main",
      null,
      h("h1", null, "Sentiment Analyser"),
      h(
        "form",
        { onSubmit: this.analyzeSentence },
        h("input", {
          placeholder: "Type your sentence.",
          value: sentence,
          onChange: (event) => this.setState({ sentence: event.target.value }),
        }),
        h("button", { className: "send" }, "Send"),
      ),
      result && h(Polarity, result),
      error && h("p", { role: "alert" }, `No answer: ${error}`),
    );
  }
}
