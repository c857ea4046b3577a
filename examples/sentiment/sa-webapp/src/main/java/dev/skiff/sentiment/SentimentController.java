package dev.skiff.sentiment;

import java.time.Duration;
import org.springframework.beans.factory.annotation.Value;
import org.springframework.http.HttpStatus;
import org.springframework.http.client.SimpleClientHttpRequestFactory;
import org.springframework.web.bind.annotation.CrossOrigin;
import org.springframework.web.bind.annotation.GetMapping;
import org.springframework.web.bind.annotation.PostMapping;
import org.springframework.web.bind.annotation.RequestBody;
import org.springframework.web.bind.annotation.RestController;
import org.springframework.web.client.RestClient;
import org.springframework.web.client.RestClientException;
import org.springframework.web.server.ResponseStatusException;

/** The browser's one endpoint; it is called from the front end's origin, which is another host. */
@CrossOrigin(origins = "*")
@RestController
public class SentimentController {
    private final RestClient logic;

    public SentimentController(@Value("${sa.logic.api.url}") String url) {
        var requests = new SimpleClientHttpRequestFactory();
        requests.setConnectTimeout(Duration.ofSeconds(2));
        requests.setReadTimeout(Duration.ofSeconds(5));
        logic = RestClient.builder().baseUrl(url).requestFactory(requests).build();
    }

    @PostMapping("/sentiment")
    public Sentiment sentiment(@RequestBody Sentence sentence) {
        try {
            return logic.post().uri("/analyse/sentiment").body(sentence).retrieve().body(Sentiment.class);
        } catch (RestClientException error) {
            throw new ResponseStatusException(HttpStatus.BAD_GATEWAY, "the sentiment service does not answer", error);
        }
    }

    @GetMapping("/testHealth")
    public String health() {
        return "ok\n";
    }
}
