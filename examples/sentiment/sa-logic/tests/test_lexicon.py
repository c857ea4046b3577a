"""The lexicon's rules, each shown once. Run: python3 -m unittest discover -s tests"""

import pathlib
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "sa"))

from lexicon import polarity  # noqa: E402


class Polarity(unittest.TestCase):
    def test_known_words_count_and_others_do_not(self):
        self.assertEqual(polarity("what a good day"), 0.7)
        self.assertEqual(polarity("the table is brown"), 0.0)

    def test_a_negation_turns_around(self):
        self.assertLess(polarity("not good"), 0)

    def test_the_result_stays_in_its_range(self):
        self.assertEqual(polarity("extremely horrible"), -1.0)


if __name__ == "__main__":
    unittest.main()
